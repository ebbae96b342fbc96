"""Fits linear classifiers to the features of trained networks, all at once instead of by steps."""

from __future__ import annotations

import time
import warnings

import numpy as np
import torch
from torch import Tensor

from benchmark.core.devices import autocast
from benchmark.core.spec import Run
from benchmark.data.augmentation import evaluation_batches
from benchmark.data.dataset import Images
from benchmark.plugins.registry import method_class
from benchmark.training.cohort import Cohort
from benchmark.training.evaluation import BATCH_SIZE
from benchmark.training.failures import RunsFailed, log_failure
from benchmark.training.learner import Learner
from benchmark.training.settings import StopFn

MOST_ITERATIONS = 1000
"""Of L-BFGS; the loss is convex, and it is near its minimum long before."""


def is_fitted(run: Run) -> bool:
    """Tell whether the classifier of a run is fitted at once."""
    return method_class(run.method).trains == "classifier" and run.options.get("solver") == "lbfgs"


class FittedCohort(Cohort):
    """Runs whose classifiers are fitted to the features of the training images, shown as in evaluation."""

    def train(self, stop: StopFn = lambda: False) -> bool:
        """Fit every classifier and write the records; False if `stop` asked to leave before all had theirs.

        Raises:
            UserError: the disk is full or a folder cannot be written.
            RunsFailed: some runs raised errors; all others have their records.
        """
        for learner in list(self.learners):
            if stop():
                return False
            self.store.begin(learner.run)
            started = time.perf_counter()
            try:
                loss = fit_classifier(learner, *self._features(learner, self.data.train))
            except Exception as error:
                self.broken.append(log_failure(self.store, [learner.run], error))
                self.learners.remove(learner)
                continue
            learner.seconds = time.perf_counter() - started
            self.seconds += learner.seconds
            self.images += len(self.data.train)
            figures = {"epoch": 1, "loss": loss, "terms": {"ce": loss}} | self._evaluate()[learner]
            learner.figures.append(figures)
            self.store.write_epochs(learner.run, learner.figures)
            self._finish(learner)
        if self.broken:
            raise RunsFailed("; ".join(self.broken))
        return True

    @torch.no_grad()
    def _features(self, learner: Learner, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """Compute what enters the classifier, float64 [images, width], and the labels, int64 [images]."""
        assert learner.student is not None
        network = learner.student.eval()
        features: list[Tensor] = []
        labels: list[Tensor] = []
        for shown, classes in evaluation_batches(images, self.recipe, BATCH_SIZE, self.device):
            with autocast(self.device, learner.run.precision):
                features.append(network(shown).pooled.double().cpu())
            labels.append(classes.cpu())
        return torch.cat(features).numpy(), torch.cat(labels).numpy()


def fit_classifier(learner: Learner, features: np.ndarray, labels: np.ndarray) -> float:
    """Fit the student's classifier by L-BFGS to features [images, width], each standardised; returns the mean loss.

    Standardisation becomes part of the classifier: W f + b is W' (f - mean) / deviation + b'.
    """
    # Importing scikit-learn takes a second, and only probes need it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation == 0] = 1.0
    standardised = (features - mean) / deviation
    model = LogisticRegression(C=1 / learner.run.options["penalty"], max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        # After so many iterations accuracy no longer changes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(standardised, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        # Of two classes scikit-learn has the difference.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / deviation
    bias = bias - weight @ mean
    assert learner.student is not None
    own_weight, own_bias = learner.student.classifier_module.parameters()
    with torch.no_grad():
        own_weight.copy_(torch.from_numpy(weight).view(own_weight.shape))
        own_bias.copy_(torch.from_numpy(bias))
    return float(log_loss(labels, model.predict_proba(standardised)))
