"""A new version takes the place of the old one under load; one that does not work leaves the old one serving."""

from functools import partial
from typing import Any

import httpx
import pytest
from ray import serve

from .application import NAME, Deployed, eventually
from .load import BODY, under_load

pytestmark = [pytest.mark.ray, pytest.mark.slow]


KEPT = httpx.Limits(keepalive_expiry=None)


def other_weights(service: Deployed) -> tuple[str, ...]:
    """The pair the other way round: other weights in both places."""
    models = service.file().args.run().models
    return (
        "uses_lab_pair=false",
        f"models.aligned.source={models.base.source}",
        f"models.base.source={models.aligned.source}",
    )


def test_a_rolling_update_of_the_weights_loses_no_request(deployed: Deployed) -> None:
    """First with surge 0, which stops an old replica before a new one starts, then back with surge 100."""
    service = deployed
    service.deploy(num_replicas=2)
    for surge, overrides in ((0, other_weights(service)), (100, ())):
        before = set(service.replicas())
        with service.http() as http, service.http(limits=KEPT) as idle, under_load(http) as load:
            assert idle.post("/sample", json=BODY).status_code == 200
            load.wait_for(10)
            service.begin(*overrides, num_replicas=2, max_surge_percent=surge)
            eventually(partial(has_only_new, service, before), "two replicas of the new version")
            # Connections that were kept go to the old one until it stops.
            eventually(lambda: len({one.networks for one in load.outcomes}) == 2, "answers of both versions")
            load.wait_for(10)
            eventually(lambda: not service.replicas("STOPPING"), "the old version is gone")
            # As a proxy or a pool keeps it: open all the while, and unused.
            assert idle.post("/sample", json=BODY).status_code == 200, f"surge {surge}"
        assert load.failures == [], f"surge {surge}"
        # One pair per sample, and the same pair for all samples of a request: never a mixture of versions.
        assert all(len(one.networks) == 1 for one in load.outcomes)


def test_a_version_that_does_not_work_leaves_the_old_one_serving(deployed: Deployed) -> None:
    """One whose constructor fails, and one that starts and fails its health check."""
    service = deployed
    service.deploy()
    bad: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (("uses_lab_pair=false", "models.aligned.source=nowhere", "models.base.source=nowhere"), {}),
        ((), {"import_path": "tests.serve.faults:build_sick"}),
    )
    before = service.replicas()
    for overrides, options in bad:
        with service.http() as http, under_load(http) as load:
            load.wait_for(5)
            service.begin(*overrides, max_surge_percent=100, **options)
            eventually(has_failed, f"{overrides or options} is told to have failed")
            load.wait_for(10)
            assert set(before) <= set(service.replicas())
            # Back again: the file that worked.
            service.begin()
            eventually(is_running, "the old version runs as if nothing had been")
            load.wait_for(5)
        assert load.failures == []
        assert len({one.networks for one in load.outcomes}) == 1


def has_only_new(service: Deployed, before: set[str]) -> bool:
    found = set(service.replicas())
    return len(found) == 2 and not found & before


def has_failed() -> bool:
    application = serve.status().applications[NAME]
    return application.status.value in ("DEPLOY_FAILED", "UNHEALTHY")


def is_running() -> bool:
    return serve.status().applications[NAME].status.value == "RUNNING"
