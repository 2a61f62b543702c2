"""The model of a large deployment: its arithmetic by hand, its laws, and that the committed numbers are its own."""

import json
from pathlib import Path

import pytest

from bench.scale import REQUEST_S, Deployment, Names, Report, Verdict, judge, measure_listing, run
from cong.stream.listing import list_stream

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results" / "scale.json"


def test_a_deployment_by_hand() -> None:
    shipped = Deployment(8, tokens_per_s=4000, tokens_per_sample=400, hours=1, acknowledge_s=0.02, relist_s=0)
    assert shipped.samples_per_s == 10
    assert shipped.rows == shipped.segments == 8 * 10 * 3600
    # 288 requests of 1,000 names, and 10 us a name
    assert shipped.listing_s(10e-6) == pytest.approx(288 * REQUEST_S + 2.88)
    assert shipped.listing_share(10e-6) == pytest.approx(10 * 17.28)
    assert shipped.index_bytes == 20 * 288_000


def test_waiting_for_company_makes_fewer_segments_and_a_kept_list_fewer_listings() -> None:
    patient = Deployment(8, tokens_per_s=4000, tokens_per_sample=400, hours=1, acknowledge_s=5, relist_s=60)
    assert patient.segments == 8 * 3600 / 5
    assert patient.listing_share(0.0) == pytest.approx(6 * REQUEST_S / 60)
    assert judge(patient, 0.0, 60.0).hours_until_listing_share_is_1 == pytest.approx(1 / (6 * REQUEST_S / 60))


def test_one_job_cannot_fill_the_seats_of_many_samplers() -> None:
    assert [Deployment(number).num_jobs for number in (1, 16, 17, 1000)] == [1, 1, 2, 63]


def test_the_names_are_a_stream_without_gaps() -> None:
    listing = list_stream(Names(3, 30))
    assert (len(listing.lanes), listing.num_rows, listing.gaps, listing.unrecognised) == (3, 240, [], [])


def test_it_runs_in_small() -> None:
    report = run([(2, 20)], [1000], [3], 1)
    assert {each.what for each in report.measured} >= {"listing", "cursor", "asking a writer for one key"}
    assert all(value > 0 for each in report.measured for value in each.values)
    assert isinstance(report, Report)


def test_the_committed_verdicts_follow_from_the_committed_measurements() -> None:
    content = json.loads(RESULTS.read_text())
    listings = [each for each in content["measured"] if each["what"] == "listing"]
    cursors = [each for each in content["measured"] if each["what"] == "cursor"]
    num_names = int(listings[-1]["size"].split(", ")[1].split()[0].replace(",", ""))
    assert measure_listing(1, 10, 1).what == "listing"
    for each in content["verdicts"]:
        deployment = Deployment(each["samplers"], acknowledge_s=each["acknowledge_s"], relist_s=each["relist_s"])
        again = judge(deployment, listings[-1]["median"] / num_names, cursors[-1]["median"] / 1000)
        assert again == Verdict(**each)
