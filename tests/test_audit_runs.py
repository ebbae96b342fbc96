"""What an audit says of our runs: paired intervals, at the paper's scale only, and why nothing where there is none."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.audit.audit import make_audit
from benchmark.audit.claims import Claim, Relation
from benchmark.audit.measured import judge_interval
from benchmark.audit.verdicts import Answer, Verdict
from benchmark.core.statistics import PairedDifference, paired_difference, paired_statistics, pooled_difference
from tables.result import TableResult
from tables.specification import load_table
from tests.audits import PRICE, SHIPPED, Values, ahead_by, audited, measured, panel


def test_without_runs_nothing_is_decided() -> None:
    found = audited("ps-kd-average")
    assert found.measured == Answer("not run yet")
    assert audited("ps-kd-average", [measured(load_table("II"), ahead_by(1.0))]).measured == Answer("not run yet")
    assert audited("name-of-the-method").runs == "cannot be checked"


@pytest.mark.parametrize(
    ("margin", "verdict", "reason"),
    [
        (1.14, "holds", "the interval holds what is claimed, and nothing further than 0.57 from it"),
        (1.5, "does not hold", "the interval is above what is claimed"),
        (0.5, "does not hold", "the interval is below what is claimed"),
        (-1.14, "does not hold", "the interval is below what is claimed"),
    ],
)
def test_an_average_is_judged_by_its_paired_interval(margin: float, verdict: Verdict, reason: str) -> None:
    table = load_table("II")
    result = measured(table, ahead_by(margin))
    answer = audited("sskd-average", [result]).measured
    pairs = [
        (result.cell("LSSKD", column.name).by_seed(), result.cell("SSKD", column.name).by_seed())
        for column in table.columns
    ]
    expected = pooled_difference(pairs)
    assert answer.difference is not None
    assert answer.difference.n == 3
    assert answer.difference.mean == pytest.approx(margin)
    assert answer.difference.interval == pytest.approx(expected.interval)
    assert answer.difference.p_value == pytest.approx(expected.p_value)
    assert (answer.verdict, answer.reason) == (verdict, reason)
    assert re.fullmatch(r"[+−]\d\.\d\d \[[+−]\d\.\d\d, [+−]\d\.\d\d\], n=3", answer.text)  # noqa: RUF001
    columns = [part for part in answer.parts if part.label in {column.name for column in table.columns}]
    for part, pair in zip(columns, pairs, strict=True):
        assert part.difference is not None
        assert part.difference.interval == pytest.approx(paired_difference(*pair).interval)
    assert (answer.parts[-1].label, answer.parts[-1].text[-12:]) == ("mean over teachers", "n=3 teachers")


def test_one_measured_cell_changes_the_verdict() -> None:
    def other(row: str, column: str, seed: int) -> float | None:
        value = ahead_by(1.14)(row, column, seed)
        return value - 12.0 if (row, column, seed) == ("SSKD", "ResNet56>ResNet20", 1) and value else value

    assert audited("sskd-average", [measured(load_table("II"), ahead_by(1.14))]).runs == "holds"
    assert audited("sskd-average", [measured(load_table("II"), other)]).runs == "not decided"


def test_a_wide_interval_is_compatible_with_much_and_bears_nothing_out() -> None:
    # 3.13 [0.14, 6.13]
    noisy = paired_statistics([2.0, 3.0, 4.4])
    for name, reach in (("sskd-average", "0.57"), ("sskd-average-again", "1")):
        claim = next(claim for claim in SHIPPED.claims if claim.id == name)
        reason = f"compatible: the interval holds what is claimed, but reaches beyond {reach} from it"
        assert judge_interval(noisy, claim) == ("not decided", reason)


NUMBERS = st.floats(-12, 12).map(lambda number: f"{number:+.2f}")


def at(mean: float, reach: float) -> PairedDifference:
    return PairedDifference(3, mean, 1.0, (mean - reach, mean + reach), 0.5)


@settings(max_examples=300, deadline=None)
@given(NUMBERS, st.sampled_from(["=", ">", ">=", "<", "<="]), st.floats(-2, 2), st.floats(0.01, 5), st.floats(1, 5))
def test_widening_an_interval_never_bears_out_what_was_not_decided(
    value: str, relation: Relation, off: float, reach: float, factor: float
) -> None:
    claim = Claim(id="one", text="t", where="w", value=value, relation=relation, expression="1 + 1")
    before, after = (judge_interval(at(float(value) + off, width), claim)[0] for width in (reach, factor * reach))
    assert (before, after) != ("not decided", "holds")
    # A side that is claimed is only ever less certain.
    assert relation == "=" or after in (before, "not decided")


@settings(max_examples=300, deadline=None)
@given(NUMBERS, NUMBERS, st.floats(-12, 12), st.floats(0.01, 8))
def test_one_interval_never_bears_out_two_numbers_that_say_different_things(
    one: str, other: str, mean: float, reach: float
) -> None:
    claims = [Claim(id="one", text="t", where="w", value=value, expression="1 + 1") for value in (one, other)]
    if all(judge_interval(at(mean, reach), claim)[0] == "holds" for claim in claims):
        assert abs(float(one) - float(other)) <= 1.01
        assert abs(float(one)) <= 1.5 * abs(float(other)) + 0.02
        assert float(one) * float(other) > 0 or abs(float(one)) + abs(float(other)) <= 0.04


def test_the_side_that_is_claimed_is_decided_by_the_whole_interval() -> None:
    claim = next(claim for claim in SHIPPED.claims if claim.id == "sskd-average")
    assert judge_interval(paired_statistics([-1.0, 1.14, 3.0]), claim)[0] == "not decided"
    assert judge_interval(paired_statistics([1.0, 1.14, 1.3]), claim)[0] == "holds"
    above = claim.model_copy(update={"relation": ">", "value": "0"})
    assert judge_interval(paired_statistics([1.0, 1.14, 1.3]), above) == ("holds", "the interval is above it")
    assert judge_interval(paired_statistics([-1.0, -1.14, -1.3]), above) == (
        "does not hold",
        "the interval is below it",
    )
    assert judge_interval(paired_statistics([-1.0, 1.14, 3.0]), above)[0] == "not decided"
    most = claim.model_copy(update={"relation": "<=", "value": "2.0"})
    assert judge_interval(paired_statistics([1.0, 1.14, 1.3]), most)[0] == "holds"
    assert judge_interval(paired_statistics([3.0, 3.14, 3.3]), most)[0] == "does not hold"


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_decide_nothing_and_it_says_why(seeds: int) -> None:
    answer = audited("sskd-average", [measured(load_table("II"), ahead_by(1.14), seeds=seeds)]).measured
    assert answer.verdict == "not decided"
    assert answer.reason == f"no interval: {seeds} seed{'s' * (seeds - 1)}, and it takes 3"
    assert answer.text.endswith(f", n={seeds}")
    assert "[" not in answer.text


@pytest.mark.parametrize(
    "changes", [{"scale": "demo"}, {"scale": "quick"}, {"dataset": "digits"}, {"comparable": False}]
)
def test_another_setting_than_the_papers_is_shown_and_gives_no_verdict(changes: dict[str, object]) -> None:
    result = dataclasses.replace(measured(load_table("II"), ahead_by(1.14)), **changes)  # type: ignore[arg-type]
    for name in ("sskd-average", "table-ii-best", "inference-cost"):
        answer = audited(name, [result]).measured
        assert answer.verdict == "not run yet"
        assert answer.setting == f"scale {result.scale}, {result.dataset}"
        assert answer.reason.startswith("no verdict from another ")
        assert answer.text


def test_of_several_settings_the_papers_decides() -> None:
    table = load_table("II")
    small = measured(table, ahead_by(-5.0), seeds=1, scale="demo")
    quick = measured(table, ahead_by(-2.0), seeds=1, scale="quick")
    whole = measured(table, ahead_by(1.14))
    assert audited("sskd-average", [small, quick, whole]).runs == "holds"
    assert audited("sskd-average", [small, quick]).measured.setting == "scale quick, cifar100"
    part = measured(table, lambda row, column, seed: ahead_by(1.14)(row, column, seed) if "8x4" in column else None)
    answer = audited("sskd-average", [small, part]).measured
    assert (answer.verdict, answer.setting) == ("not run yet", "scale paper, cifar100")


def test_a_missing_column_leaves_an_average_open_but_shown() -> None:
    def value(row: str, column: str, seed: int) -> float | None:
        return None if (row, column) == ("SSKD", "WRN-40-2>WRN-40-1") else ahead_by(1.14)(row, column, seed)

    answer = audited("sskd-average", [measured(load_table("II"), value)]).measured
    assert answer.verdict == "not run yet"
    assert answer.reason == "missing: Table II, SSKD, WRN-40-2>WRN-40-1"
    assert len([part for part in answer.parts if part.difference and part.difference.n == 3]) == 5 + 1


def test_seeds_that_one_cell_lacks_do_not_count() -> None:
    def value(row: str, column: str, seed: int) -> float | None:
        return None if (row, column, seed) == ("LSSKD", "ResNet56>ResNet20", 3) else ahead_by(1.14)(row, column, seed)

    answer = audited("sskd-average", [measured(load_table("II"), value, seeds=4)]).measured
    assert answer.difference is not None
    assert answer.difference.n == 3


def test_columns_without_a_printed_number_are_not_asked_of_runs() -> None:
    # LS and CS-KD print nothing for MobileNetV2, so nobody claims anything there.
    def value(row: str, column: str, seed: int) -> float | None:
        if column == "MobileNetV2" and row in ("LS", "CS-KD"):
            return 99.0 if row == "LS" else None
        return ahead_by(2.0)(row, column, seed)

    assert audited("table-iii-best", [measured(load_table("III"), value)]).runs == "holds"


def test_first_in_every_column_takes_every_interval() -> None:
    table = load_table("II")
    assert audited("table-ii-best", [measured(table, ahead_by(1.0))]).runs == "holds"
    answer = audited("table-ii-best", [measured(table, ahead_by({"CRD": 0.02, "KD": 0.03}))]).measured
    assert answer.verdict == "not decided"
    assert answer.text == "above all in 6 of 6 columns, n=3"
    assert answer.reason == "intervals reach below zero"
    assert all("against CRD" in part.text for part in answer.parts)


def test_a_rival_that_is_far_ahead_refutes_and_a_little_does_not() -> None:
    table = load_table("II")
    far = audited("table-ii-best", [measured(table, ahead_by({"CRD": -9.0}))]).measured
    assert (far.verdict, far.text) == ("does not hold", "above all in 0 of 6 columns, n=3")
    assert far.reason == "a rival is ahead beyond chance"
    near = audited("table-ii-best", [measured(table, ahead_by({"CRD": -0.05}))]).measured
    assert (near.verdict, near.text) == ("not decided", "above all in 0 of 6 columns, n=3")
    # Of one comparison the same lead would be beyond chance.
    assert audited("table-iv-best", [measured(load_table("IV"), ahead_by({"Baseline": -9.0}))]).runs == "does not hold"


def test_a_rival_without_runs_leaves_it_open_unless_another_refutes() -> None:
    def without(margins: dict[str, float]) -> Values:
        return lambda row, column, seed: None if row == "VID" else ahead_by(margins)(row, column, seed)

    table = load_table("II")
    answer = audited("table-ii-best", [measured(table, without({}))]).measured
    assert (answer.verdict, answer.reason) == ("not run yet", "missing: Table II, VID, WRN-40-2>WRN-16-2 and 5 more")
    assert audited("table-ii-best", [measured(table, without({"CRD": -9.0}))]).runs == "does not hold"


def test_a_rival_that_no_run_can_have_is_left_out_and_named() -> None:
    table = load_table("I")
    result = measured(table, ahead_by(1.0), dataset="imagenet")
    cells = {
        key: dataclasses.replace(cell, values=(), finished=(), status="not in the suite") if key[0] == "MOKD" else cell
        for key, cell in result.cells.items()
    }
    answer = audited("imagenet-best", [dataclasses.replace(result, cells=cells)]).measured
    assert answer.verdict == "holds"
    assert answer.reason.endswith("without MOKD, not run here")
    rows = tuple(row for row in table.rows if row.name != "MOKD")
    unnamed = dataclasses.replace(result, table=table.model_copy(update={"rows": rows}))
    unnamed = dataclasses.replace(unnamed, cells={key: cell for key, cell in result.cells.items() if key[0] != "MOKD"})
    assert audited("imagenet-best", [unnamed]).measured == answer


def test_top_1_and_top_5_are_never_averaged() -> None:
    # LSSKD is behind by 2 +- 1 in each, and by 2.00 +- 0.01 on the average of the two, were there such a thing.
    behind = {"top-1": (1.0, 2.0, 3.0), "top-5": (3.0, 2.0, 1.02)}

    def value(row: str, column: str, seed: int) -> float:
        return {"LSSKD": 70.0 - behind[column][seed], "HSSAKD": 70.0}.get(row, 40.0 + seed)

    table = load_table("I")
    answer = audited("imagenet-best", [measured(table, value, dataset="imagenet")]).measured
    assert (answer.verdict, answer.text) == ("not decided", "above all in 0 of 2 columns, n=3")
    columns = tuple(column.model_copy(update={"metric": "top1"}) for column in table.columns)
    of_one_metric = measured(table.model_copy(update={"columns": columns}), value, dataset="imagenet")
    assert audited("imagenet-best", [of_one_metric]).runs == "does not hold"


def test_bf16_runs_are_named_in_the_setting() -> None:
    result = measured(load_table("II"), ahead_by(1.14))

    def in_bf16(*rows: str) -> TableResult:
        cells = {
            key: dataclasses.replace(
                cell, finished=tuple(dataclasses.replace(run, precision="bf16") for run in cell.finished)
            )
            if key[0] in rows
            else cell
            for key, cell in result.cells.items()
        }
        return dataclasses.replace(result, cells=cells)

    settings_of = {
        (): "scale paper, cifar100",
        ("LSSKD",): "scale paper, cifar100, precision bf16 and fp32",
        ("LSSKD", "SSKD"): "scale paper, cifar100, precision bf16",
        ("VID",): "scale paper, cifar100",
    }
    for rows, setting in settings_of.items():
        answer = audited("sskd-average", [in_bf16(*rows)]).measured
        assert (answer.verdict, answer.setting) == ("holds", setting)
    best = audited("table-ii-best", [in_bf16("VID")]).measured
    assert best.setting == "scale paper, cifar100, precision bf16 and fp32"
    audit = make_audit(SHIPPED, [in_bf16("VID")])
    assert audit.settings == ("Table II at scale paper on cifar100, precision bf16 and fp32",)


def test_what_no_run_can_have_cannot_be_checked() -> None:
    result = measured(load_table("III"), ahead_by(1.0))
    cells = {
        key: dataclasses.replace(cell, values=(), finished=(), status="not in the suite") if key[0] == "PS-KD" else cell
        for key, cell in result.cells.items()
    }
    answer = audited("ps-kd-average", [dataclasses.replace(result, cells=cells)]).measured
    assert (answer.verdict, answer.reason) == ("cannot be checked", "Table III, PS-KD cannot be run")


def test_the_cost_at_inference_is_compared_exactly() -> None:
    table = load_table("II")
    assert audited("inference-cost", [measured(table, ahead_by(1.0))]).measured == Answer(
        "holds", "as claimed, n=3", setting="scale paper, cifar100"
    )
    result = measured(table, ahead_by(1.0))
    heavier = dataclasses.replace(PRICE, inference_multiply_adds=4001)
    cells = {
        key: dataclasses.replace(cell, finished=tuple(dataclasses.replace(run, price=heavier) for run in cell.finished))
        if key[0] == "LSSKD"
        else cell
        for key, cell in result.cells.items()
    }
    assert audited("inference-cost", [dataclasses.replace(result, cells=cells)]).runs == "does not hold"
    unknown = dataclasses.replace(PRICE, parameters=None)
    assert audited("inference-cost", [measured(table, ahead_by(1.0), price=unknown)]).runs == "not run yet"


def test_claims_of_figure_5_are_answered_by_its_panels() -> None:
    def few_shot(lead: float) -> Callable[[str, float, int], dict[str, object]]:
        def values(method: str, fraction: float, seed: int) -> dict[str, object]:
            ahead = lead + 0.1 * seed if method == "LSSKD" and fraction < 1 else 0.0
            return {"top1": 60 + 10 * fraction + seed + ahead}

        return values

    (result,) = panel("5", "CIFAR-100", few_shot(1.0))
    assert result.table.name == "Figure5_CIFAR100"
    assert [column.name for column in result.table.columns] == ["25%", "50%", "75%", "100%"]
    assert audited("few-shot-cifar100", [result]).runs == "holds"
    assert audited("few-shot-tiny-imagenet", [result]).runs == "not run yet"
    assert audited("few-shot-cifar100", panel("5", "CIFAR-100", few_shot(-9.0))).runs == "does not hold"
    assert audited("few-shot-tiny-imagenet", panel("5", "Tiny-ImageNet", few_shot(1.0))).runs == "holds"
    small = audited("few-shot-cifar100", panel("5", "CIFAR-100", few_shot(1.0), "demo")).measured
    assert (small.verdict, small.text) == ("not run yet", "above all in 3 of 3 columns, n=3")


def test_claims_of_figure_6_are_answered_stage_by_stage() -> None:
    def stages(lead: float) -> Callable[[str, float, int], dict[str, object]]:
        def values(method: str, fraction: float, seed: int) -> dict[str, object]:
            more = lead + 0.1 * seed if method == "LSSKD" else 0.0
            found = [50.0 + 5 * stage + seed + more * (stage + 1) for stage in range(4)]
            return {"top1": 80.0, "stages": found, "stages_joint": [1.0] * 4}

        return values

    (result,) = panel("6", "ResNet18", stages(1.0))
    assert [column.name for column in result.table.columns] == ["stage 1", "stage 2", "stage 3", "stage 4"]
    assert audited("stages-resnet18", [result]).runs == "holds"
    assert audited("deepest-stage", [result]).runs == "holds"
    assert audited("stages-resnet32x4", [result]).runs == "not run yet"
    assert audited("stages-resnet18", panel("6", "ResNet18", stages(-9.0))).runs == "does not hold"
