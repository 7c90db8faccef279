"""The page is right if a browser that is given nothing but the file does what a reader asks it to."""

import json
import math
import re
import shutil

import pytest

from deeplearn.comparison import page, report
from deeplearn.errors import UserError

plotly = pytest.importorskip("plotly")

BOLD = "<b>adam</b></script>%{x}"  # a name that nothing may take for HTML or for a template
OPTIMIZERS = ("sgd", "lion", BOLD)
CURVES = ("loss", "validation/loss", "validation/accuracy")
RATES, STEPS = (0.001, 0.012345678901), 6


def run(optimizer, rate, seed, phase="tune", winner=False):
    """A run on its way down; that of Lion at the higher rate has no finite loss from the fourth evaluation on."""
    diverged = optimizer == "lion" and rate == RATES[1]
    loss = [2.0 * math.exp(-30 * rate * step) + 0.1 * seed for step in range(STEPS)]
    loss = [None if diverged and step >= 3 else value for step, value in enumerate(loss)]
    accuracy = [step / STEPS for step in range(STEPS)]
    return {
        "optimizer": optimizer,
        "phase": phase,
        "winner": winner,
        "hyperparameters": {"learning_rate": rate},
        "seed": seed,
        "diverged": diverged,
        "steps": [10 * step for step in range(STEPS)],  # from 0, for which a logarithmic axis has no place
        "epochs": [step / 2 for step in range(STEPS)],
        "seconds": [0.25 * step + 0.01 * seed for step in range(STEPS)],
        "curves": dict(zip(CURVES, (loss, loss, accuracy), strict=True)),
        "test": {},
    }


def workload(name, optimizers=OPTIMIZERS, joined=True):
    runs = [run(o, rate, seed, winner=rate == RATES[0]) for o in optimizers for rate in RATES for seed in (0, 1)]
    finals = {o: [run(o, RATES[0], seed, "final", True) for seed in (2, 3, 4)] for o in optimizers}
    bands = {
        o: {
            name: {key: finals[o][i]["curves"][name] for i, key in enumerate(("low", "middle", "high"))}
            for name in CURVES
        }
        for o in optimizers
    }
    points = {
        o: [
            {"learning_rate": rate, "middle": None if lost else 0.8, "low": None if lost else 0.7, "high": 0.9}
            | {"diverged": 2 * lost, "runs": 2, "hyperparameters": {"learning_rate": rate}}
            for rate in RATES
            for lost in [o == "lion" and rate == RATES[1]]
        ]
        for o in optimizers
    }
    return {
        "name": name,
        "metric": "validation/accuracy",
        "rises": True,
        "target": 0.5,
        "columns": ["optimizer", "learning rate", "seconds to target"],
        "rows": [[o, "0.001", ("10.5", "-", "9.25")[i]] for i, o in enumerate(optimizers)],
        "notes": ["sgd: 2 of 3 seeds, 0 ties, p = 1 <i>"],
        "runs": runs + [run for of in finals.values() for run in of],
        "bands": bands,
        "sensitivity": points,
        "joined": joined,
        "budget": {
            o: {"k": [1, 2], "expected": [0.7, 0.8], "median": [None, 3.0], "chance": [0, 0.5]} for o in optimizers
        },
        "budget_metric": "validation/accuracy",
    }


def make(**changes):
    profile = {"tau": [1.0, 2.0, 4.0], "rho": {o: [0.0, 0.5, 1.0] for o in OPTIMIZERS}}
    return {
        "title": "Three <b>optimizers</b> & </script>",
        "command": "deeplearn compare --name='a b'",
        "manifest": {"jax": "0.10", "nothing": math.nan},
        "colours": dict(zip(OPTIMIZERS, ("#0072b2", "#d55e00", "#009e73"), strict=True)),
        "dashes": dict(zip(OPTIMIZERS, ("solid", "dash", "dashdot"), strict=True)),
        "workloads": [workload("digits"), workload("waves", joined=False)],
        "profiles": {"seconds": profile, "epochs": profile | {"low": profile["rho"], "high": profile["rho"]}},
    } | changes


def test_everything_is_in_the_file():
    text = page.render(make())
    assert "<title>Three &lt;b&gt;optimizers&lt;/b&gt; &amp; &lt;/script&gt;</title>" in text
    assert "<title>{{plotly}}</title>" in page.render(make(title="{{plotly}}"))
    ours = text.replace(plotly.offline.get_plotlyjs(), "")
    assert len(ours) < len(text) and not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", ours)
    embedded = re.search(r'id="study">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(embedded)["workloads"][0]["name"] == "digits"
    assert json.loads(embedded)["manifest"] == {"jax": "0.10", "nothing": None}


def test_curves_are_shortened_and_hyperparameters_are_not():
    study = page.shortened(make())
    first = study["workloads"][0]["runs"][2]
    assert first["curves"]["loss"][1] == 1.38096 and first["hyperparameters"] == {"learning_rate": RATES[1]}
    assert study["workloads"][0]["runs"][6]["curves"]["loss"][3] is None
    assert first["epochs"] == make()["workloads"][0]["runs"][2]["epochs"] != first["seconds"]
    assert first["seconds"] == make()["workloads"][0]["runs"][2]["seconds"]


def test_a_disk_that_refuses_is_a_line(tmp_path):
    with pytest.raises(UserError, match="No such file or directory"):
        page.write(tmp_path / "none" / "page.html", make())


class Reader:
    """A browser with a page open, and what its reader can see and do."""

    def __init__(self, driver):
        self.driver = driver

    def ask(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def press(self, key, value):
        self.driver.find_element("css selector", f'[data-key="{key}"][data-value="{value}"]').click()

    def chip(self, optimizer):
        return self.ask("document.querySelector(`[data-optimizer='${CSS.escape(arguments[0])}']`)", optimizer)

    def lines(self, panel, section="curves"):
        """The traces of a panel but for bands, each a dict."""
        traces = self.ask(f"document.querySelectorAll('#{section} .plot')[{panel}].data")
        return [trace for trace in traces if trace.get("fill") != "toself"]

    def hover(self, section, trace, point):
        """What is told of a point of a trace, counted from the last if negative."""
        plot = f"document.querySelector('#{section} .plot')"
        number = f"{plot}.data.findIndex((trace) => trace === {plot}.data.at({trace}))"
        self.ask(f"Plotly.Fx.hover({plot}, [{{ curveNumber: {number}, pointNumber: {point} }}])")
        return self.ask(f"{plot}.querySelector('.hoverlayer').textContent")

    def names(self):
        """Whose traces there are, panel by panel."""
        panels = self.ask("[...document.querySelectorAll('.plot')].map(({ data }) => data.map(({ name }) => name))")
        return [{name for name in panel if name} for panel in panels]

    def axis(self, axis, panel=0):
        return self.ask(
            f"(axis => [axis.type, axis.title.text])(document.querySelectorAll('.plot')[{panel}].layout.{axis})"
        )

    def column(self, i):
        return self.ask(f"[...document.querySelectorAll('tbody tr')].map((row) => row.cells[{i}].innerText)")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1280,1600"),
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    page.write(path, make())
    return path.as_uri()


@pytest.fixture
def reader(driver, address):
    """The page as it opens; whatever a test does with it, the browser has nothing to complain about."""
    driver.get(address)
    yield Reader(driver)
    assert driver.get_log("browser") == []


def test_it_opens_and_fetches_nothing(reader):
    assert reader.ask("performance.getEntriesByType('resource').map(({ name }) => name)") == []
    assert reader.ask("document.querySelector('h1').innerText") == "Three <b>optimizers</b> & </script>"
    assert reader.ask("document.getElementById('summary').innerText").startswith(
        "3 optimizers, 2 workloads, 42 runs, 4 of"
    )
    captions = reader.ask("[...document.querySelectorAll('figcaption')].map((at) => at.firstChild.textContent)")
    assert captions[:4] == ["training loss", "validation loss", "validation accuracy", "last validation accuracy"]
    assert len(captions) == 4 + 3 + 2
    assert reader.chip(BOLD).text == BOLD
    assert reader.ask("document.querySelectorAll('#notes li')[0].innerText").endswith("<i>")


@pytest.mark.parametrize("view", ["band", "runs"])
def test_plotly_knows_all_that_it_is_told(reader, view):
    reader.press("view", view)
    found = reader.ask(
        "[...document.querySelectorAll('.plot')].flatMap(({ data, layout }) => Plotly.validate(data, layout) ?? [])"
        ".filter(({ code }) => code !== 'unused').map(({ msg }) => msg)"
    )
    assert found == []


def test_the_legend_hides_and_shows_in_every_panel(reader):
    chip, before = reader.chip("sgd"), reader.names()
    assert all("sgd" in names for names in before) and chip.get_attribute("aria-pressed") == "true"
    chip.click()
    assert reader.names() == [names - {"sgd"} for names in before] and chip.get_attribute("aria-pressed") == "false"
    reader.ask("document.getElementById('workload').selectedIndex = 1")
    reader.ask("document.getElementById('workload').dispatchEvent(new Event('change'))")
    reader.press("x", "epochs")
    assert not any("sgd" in names for names in reader.names())
    chip.send_keys(" ")
    assert reader.names() == before


def test_a_double_click_leaves_one_and_another_brings_all_back(reader):
    from selenium.webdriver import ActionChains

    before = reader.names()
    ActionChains(reader.driver).double_click(reader.chip("lion")).perform()
    assert all(names == {"lion"} for names in reader.names())
    ActionChains(reader.driver).double_click(reader.chip("lion")).perform()
    assert reader.names() == before


def test_with_all_hidden_nothing_is_left_to_draw(reader):
    for optimizer in OPTIMIZERS:
        reader.chip(optimizer).click()
    assert reader.names() == []
    reader.driver.find_element("css selector", "#legend .all").click()
    assert len(reader.names()) == 9


def test_axes(reader):
    assert reader.axis("xaxis") == ["linear", "steps"] and reader.axis("yaxis")[0] == "log"
    assert reader.axis("yaxis", 2)[0] == "linear"  # accuracies, where losses are logarithmic
    reader.press("x", "seconds")
    assert reader.axis("xaxis") == ["linear", "seconds"]
    assert reader.lines(0)[0]["x"] == pytest.approx([0.25 * step + 0.03 for step in range(STEPS)])  # of three seeds
    reader.press("x", "steps")
    reader.press("xScale", "log")
    reader.press("yScale", "log")
    assert reader.axis("xaxis", 2) == ["log", "steps"] and reader.axis("yaxis", 2)[0] == "log"
    line = reader.lines(2)[0]
    assert line["x"][:2] == [None, 10] and line["y"][0] is None and line["y"][1] > 0
    reader.press("yScale", "linear")
    assert reader.axis("yaxis")[0] == "linear"


def test_smoothing(reader):
    raw = reader.lines(0)[0]["y"]
    reader.ask("document.getElementById('smoothing').value = 0.5")
    reader.ask("document.getElementById('smoothing').dispatchEvent(new Event('input'))")
    smooth, total = 0.0, 0.0
    for value, drawn in zip(raw, reader.lines(0)[0]["y"], strict=True):
        smooth, total = 0.5 * smooth + 0.5 * value, 0.5 * total + 0.5
        assert drawn == pytest.approx(smooth / total)
    assert reader.ask("smooth([1, null, 3], 0.5)") == pytest.approx([1, None, 7 / 3])


def test_every_run_is_a_line_that_tells_what_it_is(reader):
    reader.press("view", "runs")
    lines = [line for line in reader.lines(0) if line["mode"] == "lines"]
    ends = [line for line in reader.lines(0) if line["mode"] == "markers"]
    assert len(lines) == 3 * 7 and len(ends) == 2
    assert [len(line["x"]) for line in lines if line["name"] == "lion"].count(3) == 2  # those that diverged
    assert ends[0]["x"] == [20]
    words = reader.hover("curves", 2, 2)  # after the two seeds at the lower rate
    for part in ("sgd", f"learning_rate = {RATES[1]}", "seed 0, tuning", "step 20", "training loss 0.95352"):
        assert part in words


def test_names_are_no_markup_in_what_the_pointer_is_told(reader):
    assert BOLD in reader.hover("rates", -2, 1)  # the last trace is Lion's foot


def test_points_at_which_runs_diverged_are_marked_at_the_foot(reader):
    foot = [line for line in reader.lines(0, "rates") if line["yaxis"] == "y2"]
    assert [(line["name"], line["x"]) for line in foot] == [("lion", [RATES[1]])]
    assert "2 of 2 runs diverged" in foot[0]["text"][0]


def test_another_workload(reader):
    assert reader.ask("document.getElementById('name').innerText") == "digits"
    assert reader.lines(0, "rates")[0]["mode"] == "lines+markers"
    reader.driver.find_element("css selector", "#workload option[value='1']").click()
    assert reader.ask("document.getElementById('name').innerText") == "waves"
    assert reader.lines(0, "rates")[0]["mode"] == "markers"


def test_the_table_sorts_by_number_with_dashes_last(reader):
    assert reader.column(2) == ["10.5", "-", "9.25"]
    for expected in (["9.25", "10.5", "-"], ["10.5", "9.25", "-"]):
        reader.driver.find_elements("css selector", "th button")[2].click()
        assert reader.column(2) == expected
    assert reader.ask("document.querySelectorAll('th')[2].ariaSort") == "descending"


def test_what_is_not_there_is_not_shown(driver, tmp_path):
    """One workload, no search to look at, no target, nothing finite."""
    nothing = {
        o: {name: dict.fromkeys(("middle", "low", "high"), [None] * STEPS) for name in CURVES} for o in OPTIMIZERS
    }
    bare = workload("digits") | {"target": None, "sensitivity": {}, "budget": {}, "notes": [], "bands": nothing}
    page.write(tmp_path / "page.html", make(workloads=[bare], profiles=None))
    driver.get((tmp_path / "page.html").as_uri())
    reader = Reader(driver)
    assert reader.ask("document.querySelectorAll('.plot').length") == 0
    assert not driver.find_element("id", "workload").is_displayed()
    reader.press("view", "runs")
    assert reader.ask("document.querySelectorAll('.plot').length") == 3
    assert driver.get_log("browser") == []


def test_what_a_comparison_leaves_opens(driver, tmp_path, outcomes):
    """The document of a comparison, as `report` makes it: nothing that the page asks of it is missing."""
    page.write(tmp_path / "report.html", report.document("two workloads", outcomes, {"command": "deeplearn compare"}))
    driver.get((tmp_path / "report.html").as_uri())
    reader = Reader(driver)
    assert reader.ask("document.getElementById('summary').innerText").startswith(
        "2 optimizers, 2 workloads, 36 runs, 12"
    )
    assert all({"slow", "quick"} <= names for names in reader.names())
    reader.press("view", "runs")
    reader.chip("quick").click()
    assert all("quick" not in names and "slow" in names for names in reader.names())
    assert reader.column(0) == ["quick", "slow"] and driver.get_log("browser") == []
