"""Mark the slow tests, order all tests, and distribute them over processes (pytest-xdist)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    from xdist.scheduler import LoadScopeScheduling
except ImportError:
    LoadScopeScheduling = object

SWEEPS = (
    (
        "test_slurm_survival",
        "test_slurm_limits",
        "test_slurm_probes",
        "test_executors",
        "test_slurm_folder",
        "test_slurm_upgrade",
        "test_decisions_command",
        "test_devcluster",
    ),
    ("test_slurm_cancel", "test_slurm_failures", "test_slurm_submission", "test_docs_quickstart"),
)
"""Files that mostly wait for a SLURM of their own: two processes run them, the others keep the processors busy."""
SECONDS = {
    "test_contract_bits": 150,
    "test_slurm_survival": 120,
    "test_slurm_cancel": 120,
    "test_slurm_failures": 110,
    "test_distributed": 100,
    "test_slurm_limits": 90,
    "test_reproducibility": 90,
    "test_contract": 80,
    "test_demo_learns": 75,
    "test_slurm_folder": 70,
    "test_decisions_command": 60,
    "test_run_command": 65,
    "test_accelerator": 55,
    "test_executors": 50,
    "test_catalogue": 45,
    "test_chaos": 40,
    "test_backbones_contract": 40,
    "test_mixed_images": 40,
    "test_fuzz": 33,
    "test_learning": 30,
    "test_slurm_submission": 30,
    "test_runs_quarantine": 25,
    "test_every_command": 20,
    "test_broken_runs": 20,
    "test_merge": 20,
    "test_protocol_imagenet": 20,
    "test_report_formats": 14,
    "test_figures_environment": 12,
    "test_export": 12,
    "test_bad_input": 11,
    "test_upgrade": 10,
}
"""About how many seconds files take whose names begin so: the longest start first, and no process waits at the end."""
ALONE = ("test_demo_learns",)
"""Files whose tests share no costly fixture, and so may run in different processes."""
SLOW: dict[str, tuple[str, ...]] = {
    "test_accelerator.py": (
        "test_steps_neither_wait_for_the_device_nor_mix_it_with_the_host",
        "test_mixed_images_and_crops_of_each_rotation_are_made_on_the_device",
    ),
    "test_backbones_64.py": ("test_a_method_takes_a_step_on_the_few_shot_pair",),
    "test_catalogue.py": (
        "test_what_is_said_of_a_method_is_what_a_step_of_it_shows",
        "test_the_cost_that_plans_reckon_with_is_the_one_counted_in_a_step",
    ),
    "test_chaos.py": (
        "test_sixty_faults_cost_nothing",
        "test_a_broken_suite_is_found_out",
        "test_what_is_not_broken_is_not_found_out",
    ),
    "test_contract_bits.py": ("test_a_run_gives_the_same_bits_alone_and_beside_others",),
    "test_decisions_command.py": ("test_a_cluster_trains_a_sweep_for_each_round",),
    "test_demo_learns.py": (
        "test_every_method_learns_the_digits_at_demo_scale",
        "test_a_deep_teacher_learns_the_digits_at_demo_scale",
    ),
    "test_devcluster.py": (),
    "test_distributed.py": (
        "test_stopped_and_killed_and_resumed_gives_the_same_bits",
        "test_two_processes_without_batch_norm_leave_what_one_leaves",
        "test_every_process_keeps_the_tables_that_one_would_have",
    ),
    "test_docs_quickstart.py": (
        "test_every_command_of_a_walk_runs",
        "test_every_command_of_the_walk_to_a_cluster_runs_on_slurm",
    ),
    "test_edge.py": (
        "test_every_network_is_exported_with_the_same_logits_and_counts",
        "test_int8_stays_near_float32_and_has_a_scale_for_each_channel",
    ),
    "test_every_command.py": ("test_a_terminal_without_utf_8_loses_characters_and_no_files",),
    "test_executors.py": ("test_what_a_failed_teacher_was_to_teach_fails_with_its_reason",),
    "test_figures_environment.py": ("test_no_setting_of_the_environment_changes_a_byte",),
    "test_fuzz.py": (),
    "test_learning.py": (
        "test_baseline_is_as_accurate_as_a_plain_loop_with_its_recipe",
        "test_the_mean_training_loss_falls_with_every_epoch",
    ),
    "test_losses_hssakd_online.py": ("test_a_resumed_run_beside_a_taught_one_gives_the_same_bits_as_one_alone",),
    "test_losses_mokd.py": ("test_a_resumed_run_gives_the_same_bits_as_one_that_was_not",),
    "test_mixed_images.py": ("test_mixed_runs_train_resume_and_share_a_cohort",),
    "test_predictors.py": ("test_the_export_holds_all_that_predicts",),
    "test_protocol_imagenet.py": ("test_a_run_gives_the_same_bits_alone_and_in_a_cohort",),
    "test_released_checkpoints.py": ("test_every_layout_round_trips",),
    "test_report_browser.py": ("test_text_and_ground_differ_enough_in_light_and_in_dark",),
    "test_reproducibility.py": (
        "test_bf16_gives_the_same_bits_in_another_cohort_and_order_and_after_a_stop",
        "test_a_cohort_killed_at_ten_random_moments_gives_the_same_bits",
        "test_past_weights_survive_a_resume_and_differ_from_the_table",
        "test_the_order_of_a_cohort_does_not_matter",
        "test_a_subset_of_an_interrupted_cohort_goes_on_from_its_checkpoint",
        "test_a_teacher_of_another_precision_gives_the_same_bits_whoever_asks_first",
    ),
    "test_run_command.py": (
        "test_a_table_stopped_by_ctrl_c_goes_on_from_its_checkpoint",
        "test_two_commands_at_once_train_each_run_once",
        "test_a_killed_worker_fails_its_job_only_and_the_next_call_finishes",
    ),
    "test_runs_quarantine.py": ("test_several_workers_heal_what_several_jobs_need",),
    "test_slurm_cancel.py": (),
    "test_slurm_failures.py": (),
    "test_slurm_folder.py": (),
    "test_slurm_limits.py": (),
    "test_slurm_probes.py": (),
    "test_slurm_submission.py": (),
    "test_slurm_survival.py": (),
    "test_slurm_upgrade.py": (),
}
"""What `make test` leaves to `make test-all`: the functions that take longest, by file; () is the whole file.

Of the sweeps on a real SLURM, `test_executors` stays, so that `make test` notices a change that breaks sweeps.
"""
FIRST_OF_EACH_METHOD = "test_a_method_learns_and_teaches_only_what_it_should"
"""`make test` runs this test on the first pair of networks of every method; the other pairs are slow."""


def _file_of(node: str) -> str:
    return node.partition("::")[0].rpartition("/")[2]


def _group_of(node: str) -> str:
    """Return what one process is given as a whole: a group of sweeps, a file, or a test."""
    stem = _file_of(node).removesuffix(".py")
    for number, files in enumerate(SWEEPS):
        if stem in files:
            return f"sweeps {number}"
    return node if stem in ALONE else stem


def _seconds(item: pytest.Item) -> int:
    return next((seconds for start, seconds in SECONDS.items() if item.path.stem.startswith(start)), 0)


def _is_slow(item: pytest.Item) -> bool:
    functions = SLOW.get(item.path.name)
    return functions is not None and (not functions or item.originalname in functions)  # type: ignore[attr-defined]


def _check_slow_names(files: set[Path]) -> None:
    """Refuse a name in SLOW that its file no longer has, since `make test` would then run the renamed test."""
    for file in files:
        text = file.read_text(encoding="utf-8")
        for function in SLOW.get(file.name, ()):
            if f"def {function}(" not in text:
                raise pytest.UsageError(f"tests/conftest.py: SLOW names {function}, which {file.name} does not have")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all tests without collecting garbage, and leave what they import out of later collections."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


# Before the plugin that deselects by -m.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _check_slow_names({item.path for item in items})
    methods: set[str] = set()
    for item in items:
        is_slow = _is_slow(item)
        if item.name.startswith(f"{FIRST_OF_EACH_METHOD}["):
            method = item.callspec.params["method"]  # type: ignore[attr-defined]
            is_slow = method in methods
            methods.add(method)
        if is_slow:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (not _group_of(item.nodeid).startswith("sweeps "), -_seconds(item)))


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a process all tests of a file, or of a group of sweeps, in the order of their collection."""

    def _split_scope(self, nodeid: str) -> str:
        return _group_of(nodeid)

    def schedule(self) -> None:
        self.config.option.loadscopereorder = False
        super().schedule()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return ByFile(config, log)
