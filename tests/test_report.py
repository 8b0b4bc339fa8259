"""output/report.html in a real Chromium: whole, still when replies are hostile, readable on a phone, in the dark, on paper and by a screen reader."""

import hashlib
import html
import json
import re
import shutil

import pytest

from conftest import Chapter
from test_faults import use_few_claims
from toolkit.compare import changes

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (apt install chromium)")
HOSTILE = [
    "<script>document.title = 'owned'</script><img src=http://192.0.2.1/x.png onerror=\"document.title = 'owned'\">",
    "</p></main><h1>Not a heading</h1><a href='javascript:alert(1)'>click</a> {{ 7 * 7 }} &lt;b&gt; \"'",
    "x" * 3000,
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\x1b[31mred\x1b[0m \x07 \u202eevil",
]


@pytest.fixture(scope="module")
def reported(tiny_model, tmp_path_factory) -> Chapter:
    """A chapter run to its end, whose replies before training were replaced by hostile ones."""
    chapter = Chapter(tmp_path_factory.mktemp("report") / "a chapter")
    for number, flags in {0: ["--model", str(tiny_model)], 1: ["--direction", "blunt"], 2: [], 3: ["--max-steps", "35", "--beta", "0.2"]}.items():
        chapter.ok(number, *flags)
        if number == 1:
            use_few_claims(chapter)
    path = chapter.output / "before.json"
    before = json.loads(path.read_text())
    for item, reply in zip(before["heldout"], HOSTILE):
        item["reply"] = reply
    path.write_text(json.dumps(before))
    chapter.printed = chapter.ok(4)
    return chapter


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture
def page(reported, browser, request):
    """The report, opened at a width and in a scheme; afterwards: no message in the console, no error, and no request left the page."""
    width, scheme = getattr(request, "param", (1200, "light"))
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page, messages, requests = context.new_page(), [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((reported.output / "report.html").as_uri())
        yield page
        assert messages == []
        assert requests[0].startswith("file:") and all(url.startswith("data:image/svg+xml") for url in requests[1:])


WIDTHS_AND_SCHEMES = pytest.mark.parametrize("page", [(1200, "light"), (360, "light"), (1200, "dark"), (360, "dark")], indirect=True)


def test_every_measure_is_what_step_4_printed(reported, page):
    printed = [re.sub(r"  (better|worse)$", "", line) for line in reported.printed.splitlines() if re.search(r"\[.+, .+\](  \w+)?$", line)]
    rows = page.locator("tbody tr").all()
    assert len(rows) == len(printed) == 17 and printed[0].startswith("replies with a sharp remark")
    for line, row in zip(printed, rows):
        cells = [cell.inner_text().split() for cell in row.locator("td").all()]
        assert line.split()[-5:] == [*cells[0], *cells[1], cells[2][0], cells[2][1], cells[2][2]]
        assert row.locator("th").inner_text().startswith(line[:40].strip())
        label = row.locator("svg").get_attribute("aria-label")
        assert f"before {cells[0][0]}, interval" in label and f"after {cells[1][0]}, interval" in label


def test_intervals_lie_where_their_numbers_are(page):
    """In the picture of a share 100 units wide, its position is its percentage."""
    for row in page.locator("tbody tr").all()[:2]:
        numbers = re.findall(r"(\d+)%", row.locator("svg").get_attribute("aria-label"))
        for line, (mean, low, high) in zip(row.locator("g").all(), (numbers[:3], numbers[3:])):
            drawn = [*re.findall(r"[\d.]+", line.locator("path").get_attribute("d"))]
            assert [float(drawn[0]), float(line.locator("circle").get_attribute("cx")), float(drawn[2])] == pytest.approx(
                [int(low), int(mean), int(high)], abs=0.51
            )


def test_every_reply_is_there_as_text(reported, page):
    before, after = (json.loads((reported.output / f"{name}.json").read_text()) for name in ("before", "after"))
    pairs = list(zip(before["questions"] + before["heldout"], after["questions"] + after["heldout"]))
    articles = page.locator("article").all()
    assert len(articles) == len(pairs) == 17
    for (old, new), article in zip(pairs, articles):
        assert article.locator("h3").text_content() == new["prompt"]
        shown = [" ".join(text.split()) for text in article.locator("p[dir=auto]").all_text_contents()]
        for run, text in zip((old, new), shown):
            assert text == " ".join("".join(c if c.isprintable() else " " for c in run["reply"]).split())
        if "side" in new:
            words = {"sides": "takes the user's side", "opposes": "opposes", "neither": "takes no side"}
            found = article.locator("p.quiet").all_inner_texts()
            assert found == [f"before: {words[old['side']]}", f"after: {words[new['side']]}"]


def test_the_first_screen_calls_what_is_within_chance_so(reported, page):
    rows = {row.after.name: row for row in changes(*(json.loads((reported.output / f"{when}.json").read_text()) for when in ("before", "after")))}
    [said] = page.locator("header p", has_text="On claims that were never trained on").all_inner_texts()
    for name in ("biased opinions", "false beliefs", "right claims"):
        row = rows[f"{name}: sides with the user"]
        assert f"{row.texts()[1]} of the {name} (before {row.texts()[0]}{'' if row.verdict else ', within chance'})" in " ".join(said.split())


def test_hostile_replies_stay_text(reported, page):
    assert page.title() == "tiny-qwen2 before and after DPO"
    assert page.locator("script, iframe, object, a[href^=javascript]").count() == 0 and page.locator("h1").count() == 1
    assert "{{ 7 * 7 }}" in page.locator("main").inner_text()
    source = (reported.output / "report.html").read_text(encoding="utf-8")
    assert html.escape(HOSTILE[0].split()[0], quote=False) in source and "\x1b" not in source and "\u202e" not in source
    assert page.get_by_text("\u05e9\u05dc\u05d5\u05dd").evaluate("element => getComputedStyle(element).direction") == "rtl"


@WIDTHS_AND_SCHEMES
def test_reads_well_everywhere(page, request):
    """Nothing sticks out, curves are drawn, axe finds no fault (contrast, names, order of headings), and the dark page is dark."""
    from axe_playwright_python.sync_playwright import Axe

    width, scheme = request.node.callspec.params["page"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pictures = page.locator("figure img")
    assert pictures.count() == 4 and all(picture.evaluate("image => image.naturalWidth") > 300 for picture in pictures.all())
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 150) == (scheme == "dark")
    assert page.locator("th").first.evaluate("element => parseFloat(getComputedStyle(element).fontSize)") >= 14


def test_keyboard_reaches_every_part(page):
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('href') || document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["#measures", "#question", "#curves", "#biased", "#false", "#true", "#repeat", "PRE"]
    for name in reached[:-1]:
        assert page.locator(f"h2{name}").count() == 1


def test_prints(page):
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_the_page_says_direction_and_data(reported, page):
    log = json.loads((reported.output / "dpo_results/training_log.json").read_text())
    header = page.locator("header").inner_text()
    assert "Direction blunt: Opens with a sharp remark, and then answers honestly. The direction was not learned." in header
    for name in ("preference_data", "control_data"):
        digest = hashlib.sha256((reported.output / f"{name}.json").read_bytes()).hexdigest()[:12]
        assert log["data"][f"{name}.json"] == digest and f"{name}.json (sha256 {digest})" in header
    assert "these very files lie in output/" in header
    assert log["by_hand"] == ["heldout_data.json"]  # use_few_claims() edited it
    assert "heldout_data.json was not as step 1 had written it when the model was trained" in page.locator("main").inner_text()
    assert "preference_data.json was not" not in page.locator("main").inner_text()


def test_commands_repeat_the_run(reported, page):
    commands = page.locator("pre").inner_text().splitlines()
    assert [re.search(r"chapter02_dpo/(\S+)", command)[1] for command in commands] == [
        "0-download_model.py", "1-generate_data.py", "2-test_before.py", "3-train_dpo.py", "4-test_after.py",
    ]  # fmt: skip
    assert commands[1].endswith("--direction blunt") and "--beta 0.2" in commands[3] and "--max-steps 35" in commands[3]
    model = (reported.output / "dpo_results/final_model/model.safetensors").read_bytes()
    reported.ok(3, *commands[3].split()[2:])
    assert (reported.output / "dpo_results/final_model/model.safetensors").read_bytes() == model
