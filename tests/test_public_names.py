"""`tvmcompress.__all__` is what README documents, and all of it is there."""

import inspect
import re
from pathlib import Path

import pytest

import tvmcompress
from tvmcompress import errors

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.split(r"^#+ ", README.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_column(title: str) -> list[str]:
    """The code at the start of each row of a section's table, without arguments: `tc.load` of `tc.load(source)`."""
    return re.findall(r"^\| `([\w.]+)", section(title), re.MULTILINE)


def test_readme_documents_exactly_the_public_names():
    assert sorted(first_column("In Python")) == sorted(f"tc.{name}" for name in tvmcompress.__all__)


@pytest.mark.parametrize("name", tvmcompress.__all__)
def test_every_name_is_there_with_a_docstring(name: str):
    assert inspect.getdoc(getattr(tvmcompress, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'compres'"):
        tvmcompress.compres  # noqa: B018


def test_public_methods_have_docstrings():
    """Of the nouns; what a dataclass or a base class brings along says itself what it does."""
    classes = [getattr(tvmcompress, name) for name in tvmcompress.__all__]
    methods = [
        (cls, name)
        for cls in classes
        if inspect.isclass(cls)
        for name, member in vars(cls).items()
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
    ]
    assert methods
    undocumented = [f"{cls.__name__}.{name}" for cls, name in methods if not inspect.getdoc(getattr(cls, name))]
    assert undocumented == []


def test_readme_has_every_exit_code():
    raised = {c.exit_code for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}
    assert documented == raised | {0, 130}


def test_readme_has_every_recipe_and_target():
    recipes = {f.stem for f in (Path(tvmcompress.__file__).parent / "recipes").glob("*.toml")}
    assert set(first_column_text("Recipes")) == recipes
    targets = {f.stem for f in (Path(tvmcompress.__file__).parent / "_targets").glob("*.toml")}
    assert set(re.findall(r"`([\w.-]+)`", "".join(rows("Targets")))) == targets


def rows(title: str) -> list[str]:
    return [line for line in section(title).splitlines() if line.startswith("|")][2:]


def first_column_text(title: str) -> list[str]:
    return [re.findall(r"`([^`]+)`", row)[0] for row in rows(title)]


def test_readme_describes_every_module():
    """In the section on the architecture: every file and folder of the package, by its name."""
    text = section("Architecture")
    package = Path(tvmcompress.__file__).parent
    parts = [p.stem for p in package.glob("*.py")] + [p.parent.name for p in package.glob("*/__init__.py")]
    parts += [p.stem for folder in ("lower", "kernels", "isa", "ir", "passes") for p in (package / folder).glob("*.py")]
    assert [p for p in parts if not re.search(rf"\b{re.escape(p)}\b", text)] == []
