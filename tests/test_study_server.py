"""The preference study: what is asked, how votes are kept, and what a stranger can do to the server."""

import json
import re
import runpy
import shutil
import socket
import sqlite3
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import combinations, count

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from tests.postgresql import postgresql
from tests.test_report import make_run
from veridical.cli import app as command
from veridical.comparison.pictures import interesting
from veridical.core.errors import BadOption, DataError, MissingExtra, UnknownName
from veridical.study import server, store
from veridical.study.design import OBVIOUS, REFERENCE, full_design, load_design, new_study
from veridical.study.load import made_up_study, measure, running
from veridical.study.store import Outcome, _engine, _pg8000, export_rows, open_store
from veridical.study.votes import COLUMNS, votes_from_rows

METHODS = [f"method-{k}" for k in range(4)]  # as made_up_study calls them
PAIRS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of 4 methods, 3 images, 6 votes a pair; 8 questions a rater, 2 of them screening."""
    folder = tmp_path_factory.mktemp("made")
    made_up_study(folder, trials=6, screening=2)
    return folder


@pytest.fixture
def study(made, tmp_path):
    return shutil.copytree(made / "study", tmp_path / "study")


@pytest.fixture(scope="module")
def postgresql_url():
    with postgresql() as url:
        yield url


_number = count()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """None, for the SQLite file of the study; the URL of an empty schema in a real PostgreSQL."""
    if request.param == "sqlite":
        return None
    server_url = request.getfixturevalue("postgresql_url")
    name = f"study{next(_number)}"
    engine = _engine(server_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    engine.dispose()
    return f"{server_url}&options=-csearch_path%3D{name}"


@pytest.fixture
def votes(study, url):
    """The store of the study, on either database."""
    opened = open_store(study, url)
    yield opened
    opened.dispose()


@pytest.fixture
def client(study):
    with TestClient(server.create_app(study), base_url="http://study.test") as opened:
        yield opened


def begin(client):
    return client.post("/api/begin", json={"consent": True}).json()


def answer(client, trial, choice=1, seconds=2.0):
    return client.post("/api/vote", json={"trial": trial, "choice": choice, "seconds": seconds})


def all_rows(study):
    """Every row of every table, to see that nothing was written."""
    with sqlite3.connect(f"file:{study / 'study.sqlite'}?mode=ro", uri=True) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    connection.close()
    return rows


# ---- what is asked ----


@pytest.mark.parametrize(("methods", "images", "per_pair"), [(2, 1, 1), (3, 4, 5), (4, 3, 6), (7, 10, 25), (8, 50, 50)])
def test_every_pair_is_asked_equally_often_and_everything_is_balanced(methods, images, per_pair):
    asked = full_design(methods, images, per_pair, seed=3)
    pairs = list(combinations(range(methods), 2))
    assert Counter(tuple(sorted((c.left, c.right))) for c in asked) == Counter(pairs * per_pair)
    by_image = [sum(c.image == k for c in asked) for k in range(images)]
    assert max(by_image) - min(by_image) <= 1
    for method in range(methods):
        sides = [sum(c.left == method for c in asked), sum(c.right == method for c in asked)]
        assert abs(sides[0] - sides[1]) <= 1
    for a, b in pairs:
        of_pair = [c for c in asked if {c.left, c.right} == {a, b}]
        for of in [of_pair, *([c for c in of_pair if c.image == k] for k in range(images))]:
            assert abs(sum(c.left == a for c in of) - sum(c.left == b for c in of)) <= 1
        on_image = [sum(c.image == k for c in of_pair) for k in range(images)]
        assert max(on_image) - min(on_image) <= 1


def test_the_design_of_mdf_has_its_1400_comparisons():
    """Mustafa et al. 2022, section 4.3: 8 losses, each compared with each other 50 times, "1400 comparisons"."""
    assert len(full_design(8, 50, 50, seed=0)) == 1400


def test_a_study_that_stops_early_has_asked_each_pair_equally_often():
    asked = full_design(5, 6, 12, seed=1)
    for rounds in range(1, 13):
        counts = Counter(frozenset((c.left, c.right)) for c in asked[: 10 * rounds])
        assert set(counts.values()) == {rounds}


def test_the_design_follows_from_its_seed():
    assert full_design(5, 6, 12, seed=1) == full_design(5, 6, 12, seed=1)
    assert full_design(5, 6, 12, seed=1) != full_design(5, 6, 12, seed=2)


def test_images_are_shown_pixel_for_pixel_under_names_that_say_nothing(made):
    design = load_design(made / "study")
    for image, files in zip(design.images, design.files, strict=True):
        assert set(files) == {REFERENCE, OBVIOUS, "0", "1", "2", "3"}
        for key, file in files.items():
            assert re.fullmatch(r"[0-9a-f]{16}\.webp", file)
            data = (made / "study" / "images" / file).read_bytes()
            assert not any(name.encode() in data for name in METHODS)
            if key != OBVIOUS:
                source = made / "reference" if key == REFERENCE else made / "methods" / design.methods[int(key)]
                with Image.open(made / "study" / "images" / file) as shown, Image.open(source / f"{image}.png") as was:
                    assert np.array_equal(np.asarray(shown), np.asarray(was))


def test_a_ruined_image_is_obviously_worse(made):
    """Below 20 dB of PSNR, where the worst method of this study has more than 22."""

    def psnr(file, reference):
        with (
            Image.open(made / "study" / "images" / file) as one,
            Image.open(made / "study" / "images" / reference) as two,
        ):
            return 10 * np.log10(255**2 / np.mean((np.asarray(one, float) - np.asarray(two, float)) ** 2))

    for files in load_design(made / "study").files:
        assert psnr(files[OBVIOUS], files[REFERENCE]) < 20
        assert all(psnr(files[key], files[REFERENCE]) > 22 for key in "0123")


def test_large_images_are_cut_to_their_most_detailed_window(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.full((90, 120, 3), 128, np.uint8)
    truth[40:80, 70:110] = rng.integers(0, 256, (40, 40, 3))
    for name, pixels in {"truth": truth, "a": truth // 2, "b": 255 - truth}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.png")
    place = new_study(
        tmp_path, reference=tmp_path / "truth", out=tmp_path / "study", per_pair=1, crop=40, trials=1, screening=0
    )
    box = interesting(truth, 40)
    window = np.s_[box.top : box.top + 40, box.left : box.left + 40]
    assert box.top >= 32
    assert box.left >= 64
    for key, pixels in {REFERENCE: truth, "0": truth // 2, "1": 255 - truth}.items():
        with Image.open(place / "images" / load_design(place).files[0][key]) as shown:
            assert np.array_equal(np.asarray(shown), pixels[window])


def test_a_finished_comparison_is_asked_about(tmp_path):
    run = make_run(tmp_path / "run", failed=["contextual"])
    place = new_study(run, per_pair=4, losses=["pdl", "l2"], images=3, trials=3, seed=5)
    design = load_design(run)
    assert place == run / "study"
    assert design.methods == ("pdl", "l2")
    assert len(design.images) == 3
    slug = next(
        loss["slug"] for loss in json.loads((run / "comparison.json").read_text())["losses"] if loss["name"] == "l2"
    )
    file = place / "images" / design.files[0]["1"]
    original = run / "images" / slug / f"{design.images[0].replace(' ', '-')}.png"
    with Image.open(file) as shown, Image.open(original) as was:
        assert np.array_equal(np.asarray(shown), np.asarray(was))
    with_input = new_study(run, per_pair=1, with_input=True, trials=3, out=tmp_path / "other")
    assert load_design(with_input).methods[-1] == "input"


def test_what_cannot_be_a_study_is_refused_with_a_reason(made, tmp_path):
    methods, reference = made / "methods", made / "reference"

    def new(**options):
        defaults = {"reference": reference, "out": tmp_path / "out", "per_pair": 2, "trials": 2}
        return new_study(methods, **{**defaults, **options})

    with pytest.raises(UnknownName, match=r"unknown loss 'methd-1'\. Did you mean 'method-1'"):
        new(losses=["methd-1", "method-2"])
    with pytest.raises(DataError, match="two methods or more, but there is only 'method-1'"):
        new(losses=["method-1"])
    with pytest.raises(DataError, match="there are only 12 such questions"):
        new(trials=13)
    with pytest.raises(DataError, match="--images 9: there are only 3"):
        new(images=9)
    with pytest.raises(BadOption, match=r"--pairs must be one of full, active; got 'ful'\. Did you mean 'full'"):
        new(pairs="ful")
    with pytest.raises(BadOption, match="--per-pair must be a whole number of at least 1; got 0"):
        new(per_pair=0)
    with pytest.raises(DataError, match="holds a study already"):
        new(out=made / "study")
    with pytest.raises(DataError, match="--reference needs --out"):
        new(out=None)
    with pytest.raises(DataError, match="holds no comparison"):
        new_study(tmp_path, per_pair=2)
    with pytest.raises(DataError, match=r"holds no study\. Make one: veridical study new"):
        load_design(tmp_path)
    shutil.copytree(methods, tmp_path / "methods")
    (tmp_path / "methods" / "method-2" / "1.png").unlink()
    with pytest.raises(DataError, match="method-2 has no image '1'"):
        new_study(tmp_path / "methods", reference=reference, out=tmp_path / "out", per_pair=2)
    Image.new("RGB", (10, 8)).save(tmp_path / "methods" / "method-2" / "1.png")
    with pytest.raises(DataError, match="is 10x8 px, but its reference 64x48"):
        new_study(tmp_path / "methods", reference=reference, out=tmp_path / "out", per_pair=2, trials=2)


# ---- how votes are kept, on SQLite and on PostgreSQL ----


def test_all_votes_of_the_design_are_given_once_and_nobody_sees_a_question_twice(votes, study, url):
    raters = 0
    while (new := votes.begin()) is not None:
        raters += 1
        for number, trial in enumerate(votes.view(new.number).trials):
            assert votes.vote(new.number, trial, 1 + number % 2, 1.25) is Outcome.RECORDED
        assert votes.view(new.number).trials == ()
    design = votes.design
    found = votes_from_rows(export_rows(url or study))
    ordinary = found.keep(found.ordinary)
    assert not found.bad
    assert found.methods == tuple(METHODS)
    assert raters >= design.raters
    assert len(ordinary) == design.votes == PAIRS * 6
    asked = Counter(zip(ordinary.image, ordinary.first, ordinary.second, strict=True))
    wanted = Counter((c.image, c.left, c.right) for c in design.comparisons)
    assert asked == wanted  # image by image and side by side
    questions = [
        (row["rater"], row["image"], frozenset((row["method_1"], row["method_2"])))
        for row in export_rows(url or study)
        if not row["screening"]
    ]
    assert len(set(questions)) == len(questions)
    screening = Counter(found.screening[~found.ordinary])
    assert screening == {1: raters, 2: raters}  # each rater has two, one on each side
    assert votes.progress() == store.Progress(36, 36, 6, 6, raters, raters, False)


def test_rows_have_the_columns_of_the_table_of_votes(votes, study, url):
    new = votes.begin()
    for trial in votes.view(new.number).trials:
        votes.vote(new.number, trial, 2, 3.0)
    rows = export_rows(url or study)
    assert len(rows) == 8
    assert all(tuple(row) == COLUMNS for row in rows)
    assert all(row["rater"] == "r001" and row["result"] == 2 and row["seconds"] == 3.0 for row in rows)
    for row in rows:
        shown = (row["method_1"], row["method_2"])
        if row["screening"]:
            assert shown[row["screening"] - 1] == REFERENCE
            assert set(shown) == {REFERENCE, OBVIOUS}
        else:
            assert set(shown) < set(METHODS)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", row["at"])


def test_a_vote_is_written_once_whatever_follows(votes, study, url):
    new, other = votes.begin(), votes.begin()
    first, second, *_ = votes.view(new.number).trials
    assert votes.vote(new.number, first, 1, 1.0) is Outcome.RECORDED
    before = export_rows(url or study)
    assert votes.vote(new.number, first, 1, 9.0) is Outcome.SAME
    assert votes.vote(new.number, first, 2, 1.0) is Outcome.KEPT
    assert votes.vote(other.number, second, 1, 1.0) is Outcome.UNKNOWN  # somebody else's
    assert votes.vote(new.number, "x" * 22, 1, 1.0) is Outcome.UNKNOWN
    votes.close()
    assert votes.vote(new.number, second, 1, 1.0) is Outcome.CLOSED
    assert votes.begin() is None
    assert export_rows(url or study) == before


def test_of_many_concurrent_answers_to_a_question_one_counts(votes, study, url):
    new = votes.begin()
    trials = votes.view(new.number).trials
    with ThreadPoolExecutor(8) as pool:
        for trial in trials:
            outcomes = list(pool.map(lambda k, trial=trial: votes.vote(new.number, trial, 1 + k % 2, 1.0), range(8)))
            assert outcomes.count(Outcome.RECORDED) == 1
            assert outcomes.count(Outcome.SAME) == 3
            assert outcomes.count(Outcome.KEPT) == 4
    assert len(export_rows(url or study)) == len(trials)


def test_raters_who_begin_at_once_are_given_different_questions(votes):
    with ThreadPoolExecutor(6) as pool:
        new = list(pool.map(lambda _: votes.begin(), range(8)))
    raters = [each.number for each in new if each is not None]
    assert len(raters) == 6  # 36 comparisons, 6 each; nobody goes short as all images are still unseen
    with votes._engine.connect() as connection:
        slots = [slot for slot in connection.execute(sa.select(store._trials.c.slot)).scalars() if slot is not None]
    assert len(slots) == len(set(slots)) == 36


def test_the_questions_of_those_who_went_away_are_asked_again_and_late_votes_change_nothing(
    votes, study, url, monkeypatch
):
    gone = votes.begin()
    first, second, *_ = votes.view(gone.number).trials
    votes.vote(gone.number, first, 1, 1.0)
    others = []
    while (new := votes.begin()) is not None:
        others.append(new.number)
    for number in others:
        for trial in votes.view(number).trials:
            votes.vote(number, trial, 1, 1.0)
    assert votes.begin() is None  # not yet: the first may come back
    monkeypatch.setattr(store, "HOLD", timedelta(seconds=-1))
    late = votes.begin()
    assert late is not None
    before = export_rows(url or study)
    assert votes.vote(gone.number, second, 1, 1.0) is Outcome.LATE
    assert export_rows(url or study) == before
    assert votes.view(gone.number).trials == ()
    while late is not None:
        for trial in votes.view(late.number).trials:
            assert votes.vote(late.number, trial, 1, 1.0) is Outcome.RECORDED
        late = votes.begin()
    assert votes.progress().votes == votes.progress().wanted
    assert (votes.progress().fewest, votes.progress().most) == (6, 6)


def test_a_rater_may_answer_another_set_of_other_questions(votes, study, url):
    new = votes.begin()
    seen = set()
    for _ in range(3):
        for trial in votes.view(new.number).trials:
            votes.vote(new.number, trial, 1, 1.0)
        if not votes.more(new.number):
            break
    for row in export_rows(url or study):
        if not row["screening"]:
            question = (row["image"], frozenset((row["method_1"], row["method_2"])))
            assert question not in seen
            seen.add(question)
    assert len(seen) == 18  # all there are: 6 pairs on 3 images
    assert votes.more(new.number) is False


def test_a_rater_can_be_forgotten(votes, study, url):
    one, two = votes.begin(), votes.begin()
    for new in (one, two):
        for trial in votes.view(new.number).trials:
            votes.vote(new.number, trial, 1, 1.0)
    assert votes.forget("r001") == 8
    assert {row["rater"] for row in export_rows(url or study)} == {"r002"}
    assert votes.rater_of(one.token) is None
    with pytest.raises(DataError, match=r"no rater 'r001'\. Expected a number"):
        votes.forget("r001")
    with pytest.raises(DataError, match="no rater 'anna'"):
        votes.forget("anna")
    while (new := votes.begin()) is not None:  # the questions are asked of others
        for trial in votes.view(new.number).trials:
            votes.vote(new.number, trial, 1, 1.0)
    assert votes.progress().votes == 36


def test_active_pairs_ask_more_about_what_is_open(made, tmp_path, url):
    """Two methods are alike and two are far behind: pairs whose outcome is plain are asked less than their share."""
    place = new_study(
        made / "methods", reference=made / "reference", out=tmp_path / "study", per_pair=8, pairs="active", trials=6
    )
    votes = open_store(place, url)
    better = {"method-0": 3, "method-1": 3, "method-2": 0, "method-3": -3}
    flips = np.random.default_rng(0)
    names = votes.design.methods
    while (new := votes.begin()) is not None:
        for trial in votes.view(new.number).trials:
            with votes._engine.connect() as connection:
                row = connection.execute(sa.select(store._trials).where(store._trials.c.id == trial)).one()
            if row.screening:
                votes.vote(new.number, trial, row.screening, 1.0)
                continue
            lead = better[names[row.left]] - better[names[row.right]]
            left = lead > 0 if lead else flips.random() < 0.5
            votes.vote(new.number, trial, 1 if left else 2, 1.0)
    rows = [row for row in export_rows(url or place) if not row["screening"]]
    pairs = Counter(frozenset((row["method_1"], row["method_2"])) for row in rows)
    assert len(rows) == votes.design.votes == 48
    assert len(pairs) == 6  # none is left out
    plain = [pairs[frozenset((best, "method-3"))] for best in ("method-0", "method-1")]
    assert max(plain) < 8 < pairs[frozenset(("method-0", "method-1"))]
    for a, b in combinations(METHODS, 2):
        sides = [sum((row["method_1"], row["method_2"]) == pair for row in rows) for pair in ((a, b), (b, a))]
        assert abs(sides[0] - sides[1]) <= 1
    assert max(Counter(row["image"] for row in rows).values()) <= 48 / 3 + 3
    votes.dispose()


def test_a_database_belongs_to_one_study(made, study, url, tmp_path):
    address = url or f"sqlite:///{tmp_path / 'votes.sqlite'}"
    open_store(study, address).dispose()
    other = new_study(made / "methods", reference=made / "reference", out=tmp_path / "other", per_pair=2, trials=2)
    with pytest.raises(DataError, match="the votes of another study"):
        open_store(other, address)


def test_a_url_of_postgresql_is_read_as_its_own_client_reads_it(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "from outside")
    address = sa.make_url("postgresql+psycopg://me@/votes?host=/run/here&port=5433&options=-csearch_path%3Dx")
    assert _pg8000(address) == {
        "user": "me",
        "password": "from outside",
        "port": 5433,
        "unix_sock": "/run/here/.s.PGSQL.5433",
        "ssl_context": None,
        "startup_params": {"options": "-csearch_path=x"},
    }
    there = _pg8000(sa.make_url("postgresql://me:secret@db.example/votes?sslmode=verify-full"))
    assert (there["host"], there["password"], there["ssl_context"].check_hostname) == ("db.example", "secret", True)
    assert _pg8000(sa.make_url("postgresql://me@db.example/votes?sslmode=require"))["ssl_context"] is True
    with pytest.raises(DataError, match="sslmode is 'full'"):
        _pg8000(sa.make_url("postgresql://me@db.example/votes?sslmode=full"))
    with pytest.raises(DataError, match=r"has 'target'\. Of PostgreSQL's parameters host"):
        _pg8000(sa.make_url("postgresql://me@db.example/votes?target=x"))


def test_a_database_that_cannot_be_used_is_an_error_in_words(study):
    with pytest.raises(DataError, match="the database of the study cannot be used"):
        open_store(study, "postgresql://nobody@/nothing?host=/nowhere")
    with pytest.raises(DataError, match=r"the database is 'mysql'\. Expected postgresql"):
        open_store(study, "mysql://nobody@localhost/nothing")
    with pytest.raises(DataError, match="URL cannot be read"):
        open_store(study, "not a URL")


def test_nothing_about_a_rater_is_stored_but_a_number_a_hash_and_times(study, client):
    token = begin(client)["token"]
    rows = all_rows(study)
    ((number, token_hash, began, seen),) = rows["veridical_raters"]
    assert number == 1
    assert re.fullmatch("[0-9a-f]{64}", token_hash)
    assert began == seen
    stored = b"".join(path.read_bytes() for path in study.glob("study.sqlite*"))
    assert token.encode() not in stored
    assert b"testclient" not in stored  # what the client calls its address


# ---- what a stranger can do to the server ----


def test_a_whole_session_over_http(client, study):
    assert client.get("/api/state").json() is None
    state = begin(client)
    assert (state["done"], state["total"], state["rater"]) == (0, 8, "r001")
    while state["trials"]:
        for side in ("left", "reference", "right"):
            assert client.get(f"/image/{state['trials'][0]}/{side}").headers["content-type"] == "image/webp"
        state = answer(client, state["trials"][0]).json()
        assert state["outcome"] == "recorded"
    assert (state["done"], state["total"]) == (8, 8)
    assert len(export_rows(study)) == 8
    assert client.get("/api/state").json()["done"] == 8


def test_the_table_of_votes_says_what_was_shown_where(client, study):
    """The very bytes that came for left, right and reference are those of the image and the methods in the row."""
    design = load_design(study)
    known = {
        (study / "images" / file).read_bytes(): (image, design.methods[int(key)] if key.isdigit() else key)
        for image, files in zip(design.images, design.files, strict=True)
        for key, file in files.items()
    }
    state, seen = begin(client), []
    while state["trials"]:
        trial, choice = state["trials"][0], 1 + state["done"] % 2
        left, reference, right = (
            known[client.get(f"/image/{trial}/{side}").content] for side in ("left", "reference", "right")
        )
        assert left[0] == reference[0] == right[0]
        assert reference[1] == REFERENCE
        obvious = {left[1]: 1, right[1]: 2}[REFERENCE] if REFERENCE in (left[1], right[1]) else ""
        seen.append((left[0], left[1], right[1], choice, "r001", obvious))
        state = answer(client, trial, choice).json()
    assert [tuple(row.values())[:6] for row in export_rows(study)] == seen


def test_a_personal_link_brings_back_on_another_device(client, study):
    state = begin(client)
    answer(client, state["trials"][0])
    with TestClient(client.app, base_url="http://study.test") as other:
        found = other.post("/api/resume", json={"token": state["token"]}).json()
        assert (found["done"], found["trials"][0]) == (1, state["trials"][1])
        assert other.get("/api/state").json() == found
        assert answer(other, found["trials"][0]).json()["outcome"] == "recorded"
    assert answer(client, state["trials"][1]).json()["outcome"] == "same"
    assert len(export_rows(study)) == 2


def test_the_cookie_is_out_of_reach(client):
    made = client.post("/api/begin", json={"consent": True}).headers["set-cookie"]
    assert "HttpOnly" in made
    assert "SameSite=strict" in made
    assert "Secure" not in made  # on plain HTTP, where the browser would not keep it
    with TestClient(client.app, base_url="https://study.test") as secure:
        assert "Secure" in secure.post("/api/begin", json={"consent": True}).headers["set-cookie"]


def test_every_answer_carries_the_headers_that_protect_it(client):
    trial = begin(client)["trials"][0]
    answers = [
        client.get("/"),
        client.get("/study.js"),
        client.get("/study.css"),
        client.get("/api/state"),
        client.get(f"/image/{trial}/left"),
        client.get("/nowhere"),
        client.put("/api/vote"),
        client.post("/api/vote", content=b"x" * 5000, headers={"content-type": "application/json"}),
        client.post("/api/vote", content=b"{", headers={"content-type": "application/json"}),
    ]
    assert [found.status_code for found in answers] == [200, 200, 200, 200, 200, 404, 405, 413, 422]
    for found in answers:
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert "server" not in found.headers


def test_the_page_needs_nothing_from_elsewhere_and_has_no_script_of_its_own(client):
    html, script, style = (client.get(path).text for path in ("/", "/study.js", "/study.css"))
    assert re.findall(r"<script[^>]*>", html) == ['<script src="study.js" defer>']
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", html)
    assert not any("//" in url for url in re.findall(r"(?:src|href)=\"([^\"]+)\"", html))
    assert "http" not in script
    assert "url(" not in style
    assert "innerHTML" not in script


def test_no_answer_names_a_method(client, study):
    begun = client.post("/api/begin", json={"consent": True})
    found = [client.get(path) for path in ("/", "/study.js", "/study.css", "/api/state")] + [begun]
    state = begun.json()
    etags = set()
    while state["trials"]:
        images = [client.get(f"/image/{state['trials'][0]}/{side}") for side in ("left", "reference", "right")]
        etags |= {
            name
            for image in images
            for name in image.headers
            if name in ("etag", "last-modified", "content-disposition")
        }
        vote = answer(client, state["trials"][0])
        found += [vote, *images]
        state = vote.json()
    assert not etags
    design = load_design(study)
    secret = [*METHODS, *(file for files in design.files for file in files.values())]
    for response in found:
        said = response.content + str(response.headers).encode() + str(response.url).encode()
        assert not any(name.encode() in said for name in secret)


def test_an_image_is_cached_for_this_trial_alone(client):
    trial = begin(client)["trials"][0]
    cached = client.get(f"/image/{trial}/left").headers["cache-control"]
    assert cached == "private, max-age=86400, immutable"
    assert client.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/image/../study.json",
        "/image/..%2f..%2fstudy.json/left",
        "/image/TRIAL/..%2f..%2fstudy.sqlite",
        "/image/TRIAL/%2e%2e",
        "/image/TRIAL/ruined",
        "/image/TRIAL/0",
        "/image/TRIAL/left/",
        "/image/TRIAL/left%00.webp",
        "/image/TRIAL' OR '1'='1/left",
        "/image/",
        "/images/",
        "/study.json",
        "/study.sqlite",
        "/study.html",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_but_the_images_of_ones_own_trials_can_be_fetched(client, path):
    trial = begin(client)["trials"][0]
    assert client.get(f"/image/{trial}/left").status_code == 200
    found = client.get(path.replace("TRIAL", trial), follow_redirects=False)
    assert found.status_code in (404, 307)
    assert len(found.content) < 100


@pytest.mark.parametrize("length", [0, 1, 42, 43, 44, 5000])
def test_a_forged_token_opens_nothing(client, study, length):
    state = begin(client)
    before = all_rows(study)
    cookie = client.cookies.jar.__iter__().__next__().name
    with TestClient(client.app, base_url="http://study.test") as forger:
        forger.cookies.set(cookie, "A" * length)
        assert forger.get("/api/state").json() is None
        assert answer(forger, state["trials"][0]).status_code == 401
        assert forger.post("/api/more", json={}).status_code == 401
        assert forger.get(f"/image/{state['trials'][0]}/left").status_code == 401
        resumed = forger.post("/api/resume", json={"token": "A" * length})
        assert resumed.status_code in ((404,) if length == 43 else (413, 422))
        assert "set-cookie" not in resumed.headers
    assert all_rows(study) == before


def test_a_tampered_token_opens_nothing(client):
    token = begin(client)["token"]
    with TestClient(client.app, base_url="http://study.test") as other:
        for place in (0, 20, 41):  # of the last character some bits say nothing
            forged = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
            assert other.post("/api/resume", json={"token": forged}).status_code == 404
        assert other.post("/api/resume", json={"token": token}).status_code == 200


def test_another_raters_questions_are_out_of_reach(client, study):
    theirs = begin(client)["trials"][0]
    with TestClient(client.app, base_url="http://study.test") as other:
        begin(other)
        before = all_rows(study)
        assert answer(other, theirs).status_code == 404
        assert other.get(f"/image/{theirs}/left").status_code == 404
    assert all_rows(study) == before


INJECTION = "'; DROP TABLE veridical_trials; --"


@pytest.mark.parametrize(
    "change",
    [
        {"trial": INJECTION},
        {"trial": "' OR 1=1 --AAAAAAAAAAA"},
        {"trial": "../../../etc/passwd/00"},
        {"trial": "A" * 21 + "\n"},
        {"trial": None},
        {"trial": 7},
        {"trial": ["A" * 22]},
        {"choice": 0},
        {"choice": 3},
        {"choice": -1},
        {"choice": "1"},
        {"choice": True},
        {"choice": 1.5},
        {"choice": None},
        {"choice": INJECTION},
        {"seconds": -1},
        {"seconds": 1e9},
        {"seconds": "2"},
        {"seconds": None},
        {"screening": 1},
        {"rater": 2},
        {"__proto__": {}},
    ],
    ids=str,
)
def test_a_vote_that_is_not_one_writes_nothing(client, study, change):
    trial = begin(client)["trials"][0]
    before = all_rows(study)
    found = client.post("/api/vote", json={"trial": trial, "choice": 1, "seconds": 1.0, **change})
    assert found.status_code == 422
    assert found.json() == {"error": "The request is not what was expected."}  # nothing is repeated
    assert all_rows(study) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"consent": NaN}', b"[" * 4000], ids=repr)
def test_a_body_that_is_no_json_object_writes_nothing(client, study, body):
    before = all_rows(study)
    headers = {"content-type": "application/json"}
    for path in ("/api/begin", "/api/vote", "/api/resume"):
        found = client.post(path, content=body, headers=headers)
        assert found.status_code in (400, 401, 422)
        assert "set-cookie" not in found.headers
    assert all_rows(study) == before


def test_seconds_that_are_no_number_write_nothing(client, study):
    trial = begin(client)["trials"][0]
    before = all_rows(study)
    for seconds in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"trial": "{trial}", "choice": 1, "seconds": {seconds}}}'
        found = client.post("/api/vote", content=body, headers={"content-type": "application/json"})
        assert found.status_code == 422
    assert all_rows(study) == before


def test_nobody_takes_part_without_having_agreed(client, study):
    before = all_rows(study)
    for given in ({}, {"consent": False}, {"consent": 1}, {"consent": "true"}):
        found = client.post("/api/begin", json=given)
        assert found.status_code in (403, 422)
        assert "set-cookie" not in found.headers
    assert all_rows(study) == before


def test_a_body_of_any_other_size_or_kind_is_refused_before_it_is_read(client, study):
    trial = begin(client)["trials"][0]
    before = all_rows(study)
    vote = json.dumps({"trial": trial, "choice": 1, "seconds": 1.0}).encode()
    as_json = {"content-type": "application/json"}
    assert client.post("/api/vote", content=vote + b" " * 4096, headers=as_json).status_code == 413

    assert client.post("/api/vote", content=(b" " * 1024 for _ in range(8)), headers=as_json).status_code == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""):
        assert client.post("/api/vote", content=vote, headers={"content-type": kind}).status_code == 415
    assert client.post("/api/vote", data={"trial": trial, "choice": "1"}).status_code == 415
    for site in ("cross-site", "same-site", "none"):
        found = client.post("/api/vote", content=vote, headers={**as_json, "sec-fetch-site": site})
        assert found.status_code == 403
    assert all_rows(study) == before
    assert (
        client.post("/api/vote", content=vote, headers={**as_json, "sec-fetch-site": "same-origin"}).status_code == 200
    )


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD"])
def test_only_a_post_changes_anything(client, study, method):
    begin(client)
    before = all_rows(study)
    for path in ("/api/begin", "/api/vote", "/api/resume", "/api/more"):
        assert client.request(method, path).status_code == 405
    assert all_rows(study) == before


def test_what_a_request_brings_does_not_get_into_a_header(client):
    for token in ("A\r\nSet-Cookie: x=1", "A" * 40 + "\r\nX", "A" * 42 + "\n"):
        found = client.post("/api/resume", json={"token": token})
        assert found.status_code == 422
        assert "set-cookie" not in found.headers
        assert "x" not in found.headers


def test_texts_of_the_researcher_are_escaped(made, tmp_path):
    place = new_study(
        made / "methods", reference=made / "reference", out=tmp_path / "study", per_pair=1, trials=2,
        title="<script>alert(1)</script>", contact='"><img src=x onerror=alert(1)>',
    )  # fmt: skip
    with TestClient(server.create_app(place)) as client:
        html = client.get("/").text
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<img" not in html


def test_a_name_of_a_method_may_be_anything(made, tmp_path):
    """A name that looks like SQL or HTML goes through unchanged, and reaches nobody but the researcher."""
    names = ["l2'); DROP TABLE veridical_trials; --", '<b onclick="x">', "méthode, 3"]
    for name, source in zip(names, METHODS, strict=False):
        shutil.copytree(made / "methods" / source, tmp_path / "methods" / name)
    place = new_study(
        tmp_path / "methods", reference=made / "reference", out=tmp_path / "study", per_pair=3, trials=9, screening=0
    )
    with TestClient(server.create_app(place)) as client:
        state = begin(client)
        while state["trials"]:
            state = answer(client, state["trials"][0]).json()
    rows = export_rows(place)
    assert {name for row in rows for name in (row["method_1"], row["method_2"])} == set(names)
    assert len(votes_from_rows(rows)) == 9


def test_votes_after_the_end_change_nothing(client, study):
    state = begin(client)
    trials = []
    while state["trials"]:
        trials.append(state["trials"][0])
        state = answer(client, trials[-1]).json()
    before = export_rows(study)
    for trial in trials:
        assert answer(client, trial, choice=2).json()["outcome"] == "kept"
        assert answer(client, trial, choice=1).json()["outcome"] == "same"
    assert export_rows(study) == before
    with TestClient(client.app, base_url="http://study.test") as other:
        trial = begin(other)["trials"][0]
        closing = open_store(study)
        closing.close()
        closing.dispose()
        late = answer(other, trial).json()
        assert (late["outcome"], late["closed"], late["trials"]) == ("closed", True, [])
        assert other.post("/api/begin", json={"consent": True}).status_code == 409
    assert export_rows(study) == before


def test_a_database_in_trouble_is_said_so_that_the_page_tries_again(client, study, monkeypatch):
    trial = begin(client)["trials"][0]

    def fail(*_arguments):
        raise sa.exc.OperationalError("UPDATE", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(store.Store, "vote", fail)
    found = answer(client, trial)
    assert found.status_code == 503
    assert found.headers["retry-after"] == "2"
    assert "disk" not in found.text
    monkeypatch.undo()
    assert answer(client, trial).json()["outcome"] == "recorded"
    assert len(export_rows(study)) == 1


# ---- the real server ----


def test_fifty_raters_at_once_lose_and_double_nothing(made, tmp_path, url, capfd):
    """Each sends every answer twice. As many votes as questions were answered; none of the design's answered twice."""
    place = new_study(
        made / "methods", reference=made / "reference", out=tmp_path / "study", per_pair=26, trials=3, screening=1
    )
    with running(place, url) as (address, process):
        load = measure(address, 50, process, times=2)
        rows = export_rows(url or place)
    assert len(load.votes) == 2 * 50 * 4
    assert len(rows) == 50 * 4
    assert set(Counter(row["rater"] for row in rows).values()) == {4}
    ordinary = Counter((row["image"], row["method_1"], row["method_2"]) for row in rows if not row["screening"])
    design = load_design(place)
    wanted = Counter(
        (design.images[c.image], design.methods[c.left], design.methods[c.right]) for c in design.comparisons
    )
    assert ordinary.total() == 150
    assert not ordinary - wanted  # nothing more often than the design asks
    assert wanted.total() - ordinary.total() == 6
    assert capfd.readouterr().err == ""  # no request is logged


def test_a_port_that_is_taken_is_an_error_in_words(study):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: .*Choose another --port"):
            server.serve(study, port=port)


# ---- the command ----


def test_the_commands_from_design_to_table(tmp_path):
    run = make_run(tmp_path / "run")
    runner = CliRunner()

    def ran(*arguments, status=0):
        result = runner.invoke(command, ["study", *map(str, arguments)])
        assert result.exit_code == status, result.output
        return result.output

    said = ran("new", run, "--per-pair", 24, "--images", 6, "--losses", "l2,pdl,0.8*l2 + 0.2*lpips", "--trials", 9)
    assert "3 methods, 6 images" in said
    assert "3 pairs x 24 = 72 votes" in said
    assert "8 raters who answer 9 + 2 screening questions each, about 2 minutes" in said
    assert f"veridical study serve {run / 'study'}" in said
    with TestClient(server.create_app(run)) as client:
        trial = begin(client)["trials"][0]
        answer(client, trial)
    assert "of 72 votes" in ran("status", run)
    ran("export", run, "--out", tmp_path / "votes.csv")
    lines = (tmp_path / "votes.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 2
    assert ran("export", run).splitlines() == lines
    assert "1 answer of r001 deleted" in ran("forget", run, "r001")
    ran("close", run)
    assert "The study is closed." in ran("status", run)
    assert "holds a study already" in ran("new", run, "--per-pair", 2, status=2)


@pytest.mark.parametrize(("module", "missing"), [(store, "sqlalchemy"), (server, "fastapi"), (server, "uvicorn")])
def test_without_the_extra_the_error_names_it(monkeypatch, module, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtra, match=rf"needs '{missing}'.*pip install \"veridical\[study\]\""):
        runpy.run_path(module.__file__)
