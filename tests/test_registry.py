"""How methods are found: a file with a mistake in it is told of in one line, with the place of the mistake."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.method.contract import Method
from benchmark.planning.checks import check_methods
from benchmark.plugins.registry import NAME, all_methods, method_class
from tests import engine
from tests.commands import run_here
from tests.new_methods import NewMethods, line_of, new_methods

__all__ = ["new_methods"]

CONSTRUCTOR = "    def __init__(self, context, options):\n        super().__init__(context, options)\n        BODY\n\n"


def refusal() -> str:
    """What is said of the methods there are."""
    with pytest.raises(UserError) as refused:
        all_methods()
    return str(refused.value)


def test_a_file_is_found_by_itself_and_the_shipped_names_could_be_names_of_files(new_methods: NewMethods) -> None:
    assert new_methods().name == "Follow"
    assert len(all_methods()) > 30
    assert all(NAME.fullmatch(name) for name in all_methods())


@pytest.mark.parametrize(
    ("change", "place", "said"),
    [
        (("def weights(self)", "def weights(self"), "def weights", "SyntaxError: "),
        (("    needs_teacher", "  needs_teacher"), "needs_teacher", "IndentationError: unindent does not match"),
        (("from methods.baseline", "from methods.nowhere"), "from methods.", "ModuleNotFoundError: No module named"),
        (
            ("MethodOptions\n", "Nothing\n"),
            "from benchmark.method.contract",
            "ImportError: cannot import name 'Nothing'",
        ),
        (("share: float = 0.5", "share: float = 1 / 0"), "share: ", "ZeroDivisionError: division by zero"),
        (("def distance(", "raise SystemExit(0)\ndef distance("), "def distance(", "SystemExit: 0"),
        (('    name = "Follow"\n', ""), "class Follower", "class Follower has no name of its own"),
        (('"Follow"', '"Follow/../x"'), "name = ", "has the name 'Follow/../x', which could not be part of a file's"),
        (('"Follow"', '".."'), "name = ", "has the name '..', which could not"),
        (('"Follow"', '"' + "x" * 61 + '"'), "name = ", "60 characters at most"),
        (('"Follow"', '"KD,AT"'), "name = ", "has the name 'KD,AT', which could not"),
        (('"Follow"', "3"), "name = ", "has the name 3, which could not"),
        (("    paper", "    papers"), "class Follower", 'does not tell its paper; write paper = "..."'),
        (("def forward", "def backward"), "class Follower", "has no forward"),
        (("def weights", "def weigths"), "class Follower", "has no weights"),
        (
            ("    needs_teacher", "    version = 1.5\n    needs_teacher"),
            "needs_teacher",
            "has the version 1.5; use 1,",
        ),
        (
            ("    needs_teacher", "    view = 'turned'\n    needs_teacher"),
            "needs_teacher",
            "has the view 'turned'; a",
        ),
        (
            ("    needs_teacher", "    pair_options = {'ResNet20>ResNet8': {}}\n    needs_teacher"),
            "needs_teacher",
            "has pair_options for 'ResNet20>ResNet8'; write (teacher, student), two names",
        ),
        (("class Options(MethodOptions)", "class Options"), "class Follower", "class Options(MethodOptions)"),
    ],
)
def test_a_mistake_is_told_with_its_file_and_line(
    new_methods: NewMethods, change: tuple[str, str], place: str, said: str
) -> None:
    line = line_of(place)
    new_methods.write(change)
    reason = refusal()
    assert reason.startswith(f"methods/follow.py:{line}: ")
    assert said in reason
    # Mended, it is found, with no restart.
    assert new_methods().name == "Follow"


def test_a_taken_name_names_both_files(new_methods: NewMethods) -> None:
    new_methods.write(('"Follow"', '"KD"'))
    assert refusal().startswith(f"methods/follow.py:{line_of('name = ')}: the name 'KD' is also that of ")
    assert "methods/kd.py:" in refusal()


def test_a_method_derived_from_another_needs_a_name_of_its_own(new_methods: NewMethods) -> None:
    new_methods.write(source="from methods.kd import KD\n\n\nclass Again(KD):\n    pass\n")
    assert "methods/follow.py:4: class Again has no name of its own" in refusal()


def test_the_file_with_the_mistake_is_named_and_not_one_that_imports_it(new_methods: NewMethods) -> None:
    new_methods.write(source="from methods.zebra import stripes\n", file="ant.py")
    new_methods.write(source="import math\nstripes = math.stripes\n", file="zebra.py")
    assert refusal().startswith("methods/zebra.py:2: AttributeError: ")
    new_methods.write(source="stripes = (\n", file="zebra.py")
    assert refusal().startswith("methods/zebra.py:1: SyntaxError: ")


@pytest.mark.parametrize("command", [("--list",), ("--table", "II", "--dry-run")])
def test_commands_say_it_in_one_line_and_exit_with_code_2(new_methods: NewMethods, command: tuple[str, ...]) -> None:
    new_methods.write(("def weights(self)", "def weights(self"))
    ended = run_here(*command, folder=new_methods.folder)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: methods/follow.py:")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("self.width = context.student.breadth", "AttributeError: 'Shape' object has no attribute 'breadth'"),
        ("raise ValueError('two\\n  lines')", "ValueError: two lines"),
        ("raise KeyError", "KeyError"),
    ],
)
def test_a_method_that_cannot_be_built_is_refused_before_anything_is_trained(
    new_methods: NewMethods, body: str, said: str
) -> None:
    source = new_methods.write(("    @property", CONSTRUCTOR.replace("BODY", body) + "    @property"))
    with pytest.raises(UserError) as refused:
        check_methods([engine.run_of("Follow")], engine.digits())
    assert str(refused.value) == f"Follow cannot be built: {said} (methods/follow.py:{line_of(body, source)})"


def test_what_a_method_itself_refuses_stays_as_it_says_it(new_methods: NewMethods) -> None:
    body = "raise UserError('Follow: too few stages; choose another')"
    import_it = ("import Method,", "import UserError, Method,")
    new_methods.write(import_it, ("    @property", CONSTRUCTOR.replace("BODY", body) + "    @property"))
    with pytest.raises(UserError, match=r"^Follow: too few stages; choose another$"):
        check_methods([engine.run_of("Follow")], engine.digits())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("self.options.share", "self.opinions.share"),
            "AttributeError: 'Follower' object has no attribute 'opin",
        ),
        (('{"ce": 1.0, "logits": self.options.share}', "[1.0]"), "weights are [1.0], and must be numbers"),
        (('"ce": 1.0', '"ce": None'), "weights are {'ce': None, 'logits': 0.5}, and must be numbers"),
    ],
)
def test_weights_are_looked_at_before_anything_is_trained(
    new_methods: NewMethods, change: tuple[str, str], said: str
) -> None:
    new_methods.write(change)
    with pytest.raises(UserError) as refused:
        check_methods([engine.run_of("Follow")], engine.digits())
    assert str(refused.value).startswith(f"Follow cannot be built: {said}")
    assert str(refused.value).endswith(")")


def test_a_whole_method_is_built(new_methods: NewMethods) -> None:
    new_methods()
    assert issubclass(method_class("Follow"), Method)
    check_methods([engine.run_of("Follow")], engine.digits())
