"""Jobs over HTTP: accepted, drawn, found again, cancelled; and what users of other programs complained of."""

import base64
import io
import json
import threading
import time
from typing import Any, cast

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

import instantstyle as ist
from instantstyle.serve.limits import Limits
from instantstyle.serve.studio import Studio
from studio_server import shared_model

QUICK: dict[str, Any] = {"prompt": "a cat", "steps": 2, "guidance": 1.0, "seed": 5}
LONG: dict[str, Any] = {"prompt": "a dog", "steps": 200, "guidance": 1.0, "seed": 6}
NEON = [{"image": "neon"}]


def post(client: TestClient, request: dict[str, Any], **given: Any) -> dict[str, Any]:
    headers = given.pop("headers", {})
    answer = client.post("/v1/jobs", json=request, params=given, headers=headers)
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


def until(client: TestClient, job: str, *states: str, seconds: float = 30) -> dict[str, Any]:
    limit = time.monotonic() + seconds
    while True:
        view = client.get(f"/v1/jobs/{job}").json()
        if view["state"] in states:
            return view
        assert time.monotonic() < limit, view
        time.sleep(0.01)


def picture(client: TestClient, view: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(client.get(view["images"][0]["url"]).content))


def test_a_job_is_drawn_and_its_picture_remembers(client: TestClient) -> None:
    view = post(client, {**QUICK, "references": NEON}, wait=30)
    assert view["state"] == "done"
    assert view["seed"] == 5
    assert view["request"]["references"][0]["image"]["style"] == "neon"
    content = client.get(view["images"][0]["url"])
    assert content.headers["content-type"] == "image/png"
    shown: Any = Image.open(io.BytesIO(content.content))
    assert '"seed":5' in shown.text["instantstyle"].replace(" ", "")
    bare = client.get(view["images"][0]["url"], params={"metadata": False}).content
    assert cast("Any", Image.open(io.BytesIO(bare))).text == {}
    assert Image.open(io.BytesIO(bare)).tobytes() == shown.convert("RGB").tobytes()
    assert client.get(view["request"]["references"][0]["image"]["url"]).status_code == 200


def test_the_picture_is_the_one_that_python_draws(client: TestClient) -> None:
    view = post(client, {**QUICK, "references": NEON}, wait=30)
    alone = ist.generate(shared_model(), ist.Request(**QUICK, references=[ist.StyleReference("neon")])).images[0]
    assert picture(client, view).tobytes() == alone.tobytes()


def test_no_job_changes_the_networks(client: TestClient) -> None:
    before = shared_model().weights_hash()
    jobs = [post(client, {**QUICK, "references": NEON, "method": name}) for name in ("instantstyle", "swapped")]
    assert [until(client, job["id"], "done", "failed", seconds=300)["state"] for job in jobs] == ["done", "done"]
    assert shared_model().weights_hash() == before


def test_an_unknown_id_is_never_done(client: TestClient) -> None:
    for path in ("/v1/jobs/nobody", "/v1/jobs/nobody/events", "/v1/images/" + "0" * 32):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
    assert client.delete("/v1/jobs/nobody").status_code == 404


def test_a_key_names_one_job(client: TestClient) -> None:
    first = post(client, QUICK, headers={"Idempotency-Key": "k"})
    again = post(client, QUICK, headers={"Idempotency-Key": "k"})
    assert first["id"] == again["id"]
    other = client.post("/v1/jobs", json={**QUICK, "seed": 6}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 409
    # of another client it is another key
    assert post(client, QUICK, headers={"Idempotency-Key": "k", "X-Client-Id": "b"})["id"] != first["id"]


def test_a_seed_by_chance_is_told_at_once(client: TestClient) -> None:
    request = {name: value for name, value in QUICK.items() if name != "seed"}
    view = post(client, request)
    assert view["seed"] is not None
    assert until(client, view["id"], "done")["images"][0]["seed"] == view["seed"]


def test_cancelling_a_running_job_ends_that_one(client: TestClient) -> None:
    first, second = post(client, LONG), post(client, {**LONG, "seed": 7})
    until(client, first["id"], "running")
    until(client, second["id"], "running")
    client.delete(f"/v1/jobs/{first['id']}")
    assert until(client, first["id"], "cancelled")["error"] is None
    time.sleep(0.1)
    assert client.get(f"/v1/jobs/{second['id']}").json()["state"] == "running"
    assert client.post(f"/v1/jobs/{second['id']}/cancel").status_code == 200
    until(client, second["id"], "cancelled")


def test_cancelling_a_waiting_job_leaves_the_running_one(studio: Studio, client: TestClient) -> None:
    """InvokeAI #6049: cancelling a queued item cancelled the one that ran."""
    studio.worker.batch = 1
    running, waiting = post(client, LONG), post(client, QUICK)
    until(client, running["id"], "running")
    assert client.get(f"/v1/jobs/{waiting['id']}").json()["state"] == "queued"
    assert client.delete(f"/v1/jobs/{waiting['id']}").json()["state"] == "cancelled"
    time.sleep(0.1)
    assert client.get(f"/v1/jobs/{running['id']}").json()["state"] == "running"
    client.delete(f"/v1/jobs/{running['id']}")


def test_nothing_is_dropped_between_many(client: TestClient) -> None:
    """InvokeAI #8379: items of a batch were lost."""
    made = [post(client, {**QUICK, "seed": seed})["id"] for seed in range(12)]
    assert all(until(client, job, "done", "failed")["state"] == "done" for job in made)
    assert {each["id"] for each in client.get("/v1/jobs", params={"limit": 12}).json()["jobs"]} == set(made)


def test_a_style_does_not_stay_for_later_jobs(client: TestClient) -> None:
    """InvokeAI #5170: the adapter of one job was seen in the next."""
    before = picture(client, post(client, QUICK, wait=30)).tobytes()
    styled = [post(client, {**QUICK, "references": NEON, "seed": seed}) for seed in (5, 6)]
    beside = post(client, QUICK)
    for view in styled:
        until(client, view["id"], "done")
    assert picture(client, until(client, beside["id"], "done")).tobytes() == before
    assert picture(client, post(client, QUICK, wait=30)).tobytes() == before


def test_the_work_goes_on_when_everybody_has_left(client: TestClient) -> None:
    """A1111 #3790, gradio #11645: leaving the page stalled the work."""
    view = post(client, QUICK)
    time.sleep(0.05)  # nobody asks and nobody listens
    assert until(client, view["id"], "done")["images"]


def test_a_full_queue_says_when_to_come_back(studio: Studio, client: TestClient) -> None:
    studio.limits = Limits(queued=2)
    studio.worker.batch = 1
    made = [post(client, LONG)]
    until(client, made[0]["id"], "running")
    made += [post(client, LONG, headers={"X-Client-Id": f"c{i}"}) for i in range(2)]
    answer = client.post("/v1/jobs", json=LONG)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "full" in answer.json()["error"]["message"]
    for view in made:
        client.delete(f"/v1/jobs/{view['id']}")


def test_clients_take_turns(studio: Studio, client: TestClient) -> None:
    """One that sends many does not make another wait for all of them."""
    studio.worker.batch = 1
    begin = post(client, LONG)
    many = [post(client, QUICK, headers={"X-Client-Id": "many"})["id"] for _ in range(5)]
    one = post(client, QUICK, headers={"X-Client-Id": "one"})["id"]
    client.delete(f"/v1/jobs/{begin['id']}")
    views = {job: until(client, job, "done") for job in (*many, one)}
    order = sorted(views, key=lambda job: views[job]["started"])
    assert order.index(one) <= 1


def test_one_failure_is_its_own(studio: Studio, client: TestClient) -> None:
    refused = client.post("/v1/jobs", json={**QUICK, "size": [32, 8]})
    assert refused.status_code == 400  # at once, where the model is loaded
    good = post(client, QUICK)
    fields: dict[str, Any] = {**QUICK, "size": (32, 8)}
    unfit = ist.Request(**fields).to_json()  # as accepted while it was being loaded
    bad, _ = studio.store.put(unfit, client="c", options={})
    studio.worker.wake()
    assert "32" in until(client, bad, "failed", "done")["error"]
    assert until(client, good["id"], "done")


def test_a_live_draft_is_drawn_first_and_not_kept(studio: Studio, client: TestClient) -> None:
    studio.worker.batch = 1
    long = post(client, LONG)
    until(client, long["id"], "running")
    draft = post(client, {**QUICK, "references": NEON}, draft=True, wait=30)
    assert draft["state"] == "done"
    assert client.get(f"/v1/jobs/{long['id']}").json()["state"] == "running"
    assert client.get(draft["images"][0]["url"]).status_code == 200
    assert draft["id"] not in [each["id"] for each in client.get("/v1/jobs").json()["jobs"]]
    assert client.get("/v1/images").json()["images"] == []
    client.delete(f"/v1/jobs/{long['id']}")


def test_what_is_overtaken_is_cancelled(client: TestClient) -> None:
    first = post(client, LONG, draft=True)
    other = post(client, {**QUICK}, draft=True, replaces=first["id"], wait=30)
    assert other["state"] == "done"
    assert until(client, first["id"], "cancelled")
    # only one's own
    mine = post(client, LONG)
    post(client, QUICK, replaces=mine["id"], headers={"X-Client-Id": "somebody"})
    time.sleep(0.1)
    assert client.get(f"/v1/jobs/{mine['id']}").json()["state"] in ("queued", "running")
    client.delete(f"/v1/jobs/{mine['id']}")


def test_retry_draws_the_same_request(studio: Studio, client: TestClient) -> None:
    view = post(client, LONG)
    until(client, view["id"], "running")
    client.delete(f"/v1/jobs/{view['id']}")
    until(client, view["id"], "cancelled")
    again = client.post(f"/v1/jobs/{view['id']}/retry").json()
    assert again["id"] != view["id"]
    assert again["request"]["seed"] == 6
    client.delete(f"/v1/jobs/{again['id']}")


def test_again_says_identical(client: TestClient) -> None:
    view = post(client, {**QUICK, "references": NEON, "count": 2}, wait=30)
    for image in view["images"]:
        job = client.post(f"/v1/images/{image['id']}/again").json()
        assert until(client, job["id"], "done")["verdict"]["identical"] is True


def test_a_stopped_server_goes_on_where_it_was(studio: Studio, client: TestClient) -> None:
    """ComfyUI #2844, #13512: a queue that a restart forgets."""
    running, waiting = post(client, LONG), post(client, {**QUICK, "seed": 9})
    until(client, running["id"], "running")
    studio.worker.stop()
    states = {job.id: job.state for job in studio.store.jobs(limit=10)}
    assert states[running["id"]] == "queued"
    assert states[waiting["id"]] in ("queued", "done")
    stopped = studio.store.job(running["id"])
    assert stopped is not None
    assert stopped.attempt == 0


def test_pictures_come_in_as_multipart_data_urls_and_addresses(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    png = buffer.getvalue()
    sent = client.post("/v1/inputs", content=png, headers={"content-type": "image/png"})
    assert sent.status_code == 201
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    first = post(client, {**QUICK, "references": [{"image": url}]}, wait=30)
    second = post(client, {**QUICK, "references": [{"image": sent.json()["url"]}]}, wait=30)
    third = client.post(
        "/v1/jobs",
        params={"wait": 30},
        data={"request": json.dumps({**QUICK, "references": [{"image": "attachment:ref"}]})},
        files={"ref": ("r.png", png)},
    ).json()
    fourth = post(
        client, {**QUICK, "references": [{"image": first["request"]["references"][0]["image"]["url"]}]}, wait=30
    )
    made = [picture(client, view).tobytes() for view in (first, second, third, fourth)]
    assert len(set(made)) == 1
    begun = post(client, {**QUICK, "init": {"image": first["images"][0]["url"], "strength": 0.5}}, wait=30)
    assert begun["state"] == "done"


def test_many_at_once_are_each_as_alone(client: TestClient) -> None:
    """Unlike requests of several clients share UNet calls and are not mixed up."""
    wanted = [
        {**QUICK, "prompt": "a cat", "steps": 3},
        {**QUICK, "prompt": "a rocket", "references": NEON, "guidance": 2.0},
        {**QUICK, "prompt": "a house", "references": [{"image": "chalk", "weight": 0.7}], "steps": 4, "seed": 11},
        {**QUICK, "prompt": "a fish", "method": "ip-adapter", "references": [{"image": "brush"}]},
    ]
    views: list[dict[str, Any]] = [{}] * len(wanted)

    def ask(i: int) -> None:
        views[i] = post(client, wanted[i], wait=30, headers={"X-Client-Id": f"c{i}"})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for view, request in zip(views, wanted, strict=True):
        wished: dict[str, Any] = request
        references = [ist.StyleReference(**each) for each in wished.get("references", [])]
        given: dict[str, Any] = {**wished, "references": references}
        alone = ist.generate(shared_model(), ist.Request(**given)).images[0]
        apart = np.abs(np.asarray(picture(client, view), np.int16) - np.asarray(alone, np.int16)).max()
        assert apart <= 1


def test_every_live_method_takes_the_live_settings(studio: Studio, client: TestClient) -> None:
    facts = client.get("/v1/studio").json()
    live = {name: value for name, value in facts["live"].items() if value is not None}
    assert 1 <= live["steps"] <= 8
    methods = [method["name"] for method in facts["methods"] if method["live"]]
    assert "instantstyle" in methods
    for method in methods:
        references = [] if method == "none" else [{"image": "neon"}]
        body = {"prompt": "a cat", "method": method, "references": references, "seed": 3, **live}
        view = client.post("/v1/jobs?draft=true&preview=false&wait=60", json=body).json()
        assert view["state"] == "done", (method, view)
