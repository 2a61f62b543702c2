"""The shapes agree with what they describe: Ray's schemas and AWS's own service model."""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, get_args

import botocore.session  # type: ignore[import-untyped]
import pytest
from botocore.model import ListShape, StructureShape  # type: ignore[import-untyped]
from pydantic import BaseModel
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from cong.cluster.problem import near_misses
from cong.cluster.shape import Fit, Keys, Members, Reference, Shape, Word, known_keys, resolved, shape_names, shape_of
from cong.config.spelling import nearest, num_edits

from .shipped import LAUNCHER_FILES, SERVE_FILES, load

BINDINGS = {"provider": "aws_provider", "node_config": "ec2_instance"}


def keys_of(name: str) -> set[str]:
    return known_keys(name)


def test_every_reference_leads_somewhere() -> None:
    def references(shape: Shape) -> Iterator[str]:
        if isinstance(shape, Reference):
            yield shape.name
        elif isinstance(shape, Members):
            yield from references(shape.of)
        elif isinstance(shape, Keys):
            for inner in (*shape.known.values(), *([shape.others] if shape.others else [])):
                yield from references(inner)

    used = {name for shape in shape_names() for name in references(shape_of(shape))}
    assert used - set(BINDINGS) <= shape_names()
    roots = {"ray_cluster", "serve_file", "aws_provider", "gcp_provider", "ec2_instance", "gce_instance", "object"}
    kinds = {name for name in shape_names() if name[0].isupper()}
    assert shape_names() == used - set(BINDINGS) | roots | kinds


def test_the_launchers_keys_are_rays_own() -> None:
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())["properties"]
    assert keys_of("ray_cluster") == set(schema) - {"no_restart"}  # set by a flag of the command, never in a file
    assert keys_of("auth") == set(schema["auth"]["properties"])
    assert keys_of("docker") == set(schema["docker"]["properties"])
    node_type = schema["available_node_types"]["patternProperties"][".*"]["properties"]
    assert keys_of("node_type") == set(node_type)
    inner = shape_of("node_type")
    assert isinstance(inner, Keys)
    docker = inner.known["docker"]
    assert isinstance(docker, Keys)
    assert set(docker.known) == set(node_type["docker"]["properties"])


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.name)
def test_ray_takes_the_shipped_cluster_files_and_adds_no_command(path: Any) -> None:
    (content,) = load(path)
    prepared = prepare_config(content)
    validate_config(prepared)
    lists = [key for key in keys_of("ray_cluster") if key.endswith("_commands")]
    # Ray copies setup_commands to heads and workers; beyond that nothing of its own may be there.
    assert {line for name in lists for line in prepared[name]} == {line for name in lists for line in content[name]}
    assert prepared["head_start_ray_commands"] == content["head_start_ray_commands"]


def test_every_key_of_a_machine_is_known_to_aws() -> None:
    model = botocore.session.get_session().get_service_model("ec2")

    def compare(shape: Shape, described: Any, path: str) -> Iterator[str]:
        shape = resolved(shape, {})
        if isinstance(shape, Members):
            assert isinstance(described, ListShape), path
            yield from compare(shape.of, described.member, path)
        elif isinstance(shape, Keys):
            assert isinstance(described, StructureShape), path
            for key, inner in shape.known.items():
                if key not in described.members:
                    yield f"{path}.{key}"
                else:
                    yield from compare(inner, described.members[key], f"{path}.{key}")
        else:
            assert isinstance(shape, Word), path
            wanted = {"whole": {"integer", "long"}, "truth": {"boolean"}, "text": {"string", "timestamp", "blob"}}
            allowed = set().union(*(wanted[kind] for kind in shape.kinds), {"string"} if shape.choices else set())
            assert described.type_name in allowed, path
            if shape.choices and described.enum and "VolumeType" not in path:
                assert set(shape.choices) <= set(described.enum), path

    described = model.operation_model("RunInstances").input_shape
    assert list(compare(shape_of("ec2_instance"), described, "")) == [".SubnetIds"]  # the launcher's own
    shape = shape_of("aws_provider")
    assert isinstance(shape, Keys)
    group = shape.known["security_group"]
    assert isinstance(group, Keys)
    rules = model.operation_model("AuthorizeSecurityGroupIngress").input_shape.members["IpPermissions"]
    permissions = group.known["IpPermissions"]
    assert isinstance(permissions, Members)
    assert isinstance(permissions.of, Keys)
    assert set(permissions.of.known) == set(rules.member.members)


def fields(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def test_the_keys_of_serve_files_are_rays_own() -> None:
    left_out = {
        # No longer of any effect, or not to be written into a file.
        "smoothing_factor",
        "upscale_smoothing_factor",
        "downscale_smoothing_factor",
    }

    def compare(shape: Shape, model: type[BaseModel], path: str) -> Iterator[str]:
        shape = resolved(shape, {})
        if isinstance(shape, Members):
            yield from compare(shape.of, model, path)
            return
        if isinstance(shape, Word):
            return
        assert isinstance(shape, Keys)
        yield from (f"{path}.{key}" for key in set(shape.known) ^ fields(model) - left_out)
        for key in set(shape.known) & fields(model):
            for inner in models_in(model.model_fields[key].annotation)[:1]:
                yield from compare(shape.known[key], inner, f"{path}.{key}")

    assert sorted(compare(shape_of("serve_file"), ServeDeploySchema, "")) == []


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.name)
def test_ray_takes_the_shipped_serve_files(path: Any) -> None:
    (content,) = load(path)
    ServeDeploySchema.model_validate(content)


def test_the_keys_of_a_runtime_environment_are_rays_own() -> None:
    # A container is spelt image_uri now, and those with an underscore are Ray's.
    public = {key for key in RuntimeEnv.known_fields if not key.startswith("_")}
    assert keys_of("runtime_env") == public - {"container", "java_jars"}


@pytest.mark.parametrize(
    ("word", "good", "bad"),
    [
        ("text", ["", "a"], [1, True, None, ["a"]]),
        ("whole", [0, 3], [-1, 1.5, "1", True]),
        ("integer", [-1, 0], [1.5, "1"]),
        ("number", [0, 0.5], [-0.5, "1", False]),
        ("truth", [True, False], [1, "yes"]),
        ("quantity", ["1Gi", 4, 0.5, -1], [True, None]),
        ("null|whole", [None, 2], ["2"]),
        ("auto|whole", ["auto", 2], ["none", None]),
        ("any", [None, [], {}, "x", 1.5], []),
    ],
)
def test_words_allow_what_they_say(word: str, good: list[Any], bad: list[Any]) -> None:
    from cong.cluster.shape import _parse

    fit = Fit(_parse({"key": word}))
    assert [value for value in good if list(fit.problems({"key": value}))] == []
    assert [value for value in bad if not list(fit.problems({"key": value}))] == []


def test_a_key_at_the_wrong_level_is_told_where_it_belongs() -> None:
    content = {**load(LAUNCHER_FILES[0])[0], "InstanceMarketOptions": {"MarketType": "spot"}}
    (problem,) = Fit(shape_of("ray_cluster"), BINDINGS).problems(content)
    assert problem.message == (
        "unknown key 'InstanceMarketOptions'; it belongs at 'available_node_types.*.node_config.InstanceMarketOptions'"
    )


def test_text_that_looks_like_a_number_is_to_be_quoted() -> None:
    (problem,) = Fit(shape_of("environment")).problems({"OMP_NUM_THREADS": 1})
    assert problem.message == "OMP_NUM_THREADS is 1: it must be text; put it in quotes"


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("", "", 0), ("cpu", "cpu", 0), ("cpu", "gpu", 1), ("hte", "the", 1), ("kitten", "sitting", 3), ("a", "", 1)],
)
def test_edits_are_counted(one: str, other: str, edits: int) -> None:
    assert num_edits(one, other) == num_edits(other, one) == edits


def test_the_nearest_names_are_those_with_the_fewest_edits() -> None:
    known = ["min_workers", "max_workers", "labels"]
    assert nearest("min_worker", known) == ("min_workers",)
    assert set(nearest("mix_workers", known)) == {"min_workers", "max_workers"}
    assert nearest("anything", []) == ()
    for name in ("minworkers", "label", "xyz", "workers_max"):
        least = min(num_edits(name, other) for other in known)
        assert set(nearest(name, known)) == {other for other in known if num_edits(name, other) == least}


def test_a_name_of_ones_own_is_no_near_miss() -> None:
    assert near_misses("samplr", {"sampler", "trainer"}) == ("sampler",)
    assert near_misses("sampler", {"sampler", "trainer"}) == ()
    assert near_misses("judge", {"sampler", "trainer"}) == ()
