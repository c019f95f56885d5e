"""The documentation: it builds without warnings and agrees with the program."""

import ast
import html
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cacheplugin import helptext
from cacheplugin.web.modproxy import counters as modproxy_counters

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "cacheplugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The directory of the site as HTML, built once, with warnings as errors."""
    for name in ("sphinx", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q"]
    command += ["-b", "html", "-d", str(out / "doctrees"), str(DOCS), str(out / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return out / "html"


def text_of(markup: str) -> str:
    """The text of HTML, with single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", markup)).split())


def cells_of(page: Path) -> list:
    """The texts of all cells of the tables of an HTML page."""
    return [text_of(cell) for cell in re.findall(r"<td.*?</td>", page.read_text(), re.DOTALL)]


def test_the_site_builds_without_warnings(site):
    """Every page of docs/ is built, and no build prints a warning."""
    built = {path.stem for path in site.glob("*.html")}
    assert built >= {path.stem for path in DOCS.glob("*.rst")} > {"index", "options"}


def test_the_options_page_and_help_have_every_option(site):
    """Each row of the table of options is on the page; its flag and variable are in help."""
    cells, usage = cells_of(site / "options.html"), " ".join(helptext.usage().split())
    rows = helptext.option_rows()
    assert len(rows) > 30
    for row in rows:
        at = cells.index(row.flag)  # raises ValueError if the page lacks the flag
        assert cells[at + 2 : at + 5] == [row.format, row.default, " ".join(row.text.split())]
        assert cells[at + 1] in (row.variable, ", ".join(row.commands))
        assert row.flag in usage and row.variable in usage
        assert row.default == "false" or row.default in usage, row


def test_the_page_of_variables_has_every_variable(site):
    """Each variable of the table of options is on the page, with its flag and default."""
    cells = cells_of(site / "environment.html")
    for row in helptext.option_rows():
        if row.variable:
            at = cells.index(row.variable)
            assert cells[at + 1 : at + 3] == [row.flag, row.default]


def test_every_topic_of_help_is_listed(site):
    """The page of options names all topics of help."""
    (cell,) = (cell for cell in cells_of(site / "options.html") if "topics:" in cell)
    assert cell.partition("topics: ")[2].split(", ") == list(helptext.TOPICS)


# -- what the pages must name ----------------------------------------------------------------------


def page_text(name: str) -> str:
    """The source of a page without the marks of literals and escapes, with single spaces."""
    return " ".join(re.sub(r"``|\\", "", (DOCS / name).read_text()).split())


def test_every_module_is_in_the_map_of_modules():
    """design.rst names each module of the package."""
    text = (DOCS / "design.rst").read_text()
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__") and not (
            f"``{'.'.join(parts)}``" in text or (len(parts) > 2 and f"``{parts[-1]}``" in text)
        ):
            missing.append(".".join(parts))
    assert not missing


def test_every_counter_and_metric_is_documented():
    """metrics.rst has all names of --metrics, /debug/vars and /metrics."""
    from cacheplugin.metrics import Counters

    text = page_text("metrics.rst")
    names = [name for group in Counters().as_dict().values() for name in group]
    names += modproxy_counters.NAMES
    exposition = (PACKAGE / "web" / "exposition.py").read_text()
    names += re.findall(r'"(gocache_[a-z_]+)"', exposition)
    assert len(names) > 40
    assert not [name for name in names if not re.search(rf"\b{name}\b|\b{name}_total\b", text)]


# Calls whose text a user sees; their argument, or the first one, is the text.
PRINTS = ("say", "_say", "warn", "fail", "warning", "error", "exception", "_fatal", "report")
RAISES = (
    "UsageError",
    "ProtocolError",
    "BodyMismatch",
    "InvalidName",
    "FileMismatch",
    "UpstreamError",
    "NotThere",
    "Absent",
    "Damaged",
    "Unavailable",
    "TimedOut",
    "Unusable",
    "HTTPBadGateway",
    "HTTPServiceUnavailable",
)


def messages():
    """(module, line, longest constant part) of each text that a user can see."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
            if name in PRINTS or name in RAISES:
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                for value in values:
                    part = longest_constant(value)
                    if len(part) > 7:
                        yield path.relative_to(PACKAGE), node.lineno, part


def longest_constant(node) -> str:
    """The longest part of a text that is the same in all its forms."""
    if isinstance(node, ast.IfExp):
        return longest_constant(node.body)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = re.split(r"%[-.0-9]*[a-z]|\n", node.value)
    elif isinstance(node, ast.JoinedStr):
        parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        parts = [piece for part in parts for piece in part.split("\n")]
    else:
        return ""
    return " ".join(max(parts, key=len, default="").split())


def test_troubleshooting_lists_every_message():
    """Each error, warning and reason that the program prints is in troubleshooting.rst."""
    text = page_text("troubleshooting.rst")
    found = list(messages())
    assert len(found) > 100
    missing = [
        f"{path}:{line}: {part!r}" for path, line, part in found if part.strip(" :;,.(") not in text
    ]
    assert not missing, "add these texts to docs/troubleshooting.rst:\n" + "\n".join(missing)


# -- files beside the site -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.rst"), ROOT / "benchmarks/README.rst"], ids=lambda path: path.name
)
def test_links_to_files_of_the_tree_lead_somewhere(path):
    """The targets of relative links exist."""
    targets = re.findall(r"<([^<>\s]+)>`_", path.read_text())
    relative = [target for target in targets if "://" not in target]
    assert not [target for target in relative if not (path.parent / target).exists()]
    assert path.name != "README.rst" or relative


def test_readme_is_valid_for_a_package_index():
    """README.rst is the long description: docutils must render it without warnings."""
    core = pytest.importorskip("docutils.core", reason="docutils is not installed")
    settings = {"halt_level": 2, "report_level": 1}
    text = (ROOT / "README.rst").read_text()
    core.publish_string(text, writer="html", settings_overrides=settings)
    assert text.count("\n") < 180


def test_workflows_are_valid():
    """actionlint has no complaint about the GitHub workflows."""
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint is not on PATH")
    done = subprocess.run([actionlint], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_workflow_runs_ci_on_all_pythons():
    """ci.yml runs .ci/run on each version of Python that setup.cfg allows."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert 'python: ["3.10", "3.11", "3.12", "3.13", "3.14"]' in text and "run: .ci/run" in text
