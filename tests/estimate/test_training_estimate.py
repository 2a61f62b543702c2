"""What training takes: numbers by hand, agreement with a real network's arithmetic and a real checkpoint, laws."""

from collections.abc import Callable
from typing import Any

import pytest
import transformers

from cong.cli import main
from cong.config import RunConfig, load_config
from cong.errors import ConfigError
from cong.estimate import TrainingWork, estimate_training, machines, training_table
from cong.estimate.accelerators import ACCELERATORS, Machines
from cong.estimate.network_size import size_of_blueprint
from cong.estimate.training import _pass_operations
from cong.train.arithmetic import PEAK_TERAFLOPS, StepArithmetic
from tests.engine.conftest import FAMILIES
from tests.models.mixtures import MIXTURES

WHOLE = Machines(ACCELERATORS["A100-80GB"], 8, 1.0, 1.0, 1.0, 1.0)
STATED = ("models.strong.source=Meta-Llama-3-8B-Instruct", "train.backend=deepspeed", "train.deepspeed.zero_stage=3")


def run(*settings: str) -> RunConfig:
    return load_config(RunConfig, [], [*STATED, *settings])


def test_fine_tuning_of_eight_billion_by_hand() -> None:
    config = run("train.num_epochs=2", "train.batches.batch_size=64", "train.has_activation_checkpointing=true")
    estimate = estimate_training(config, TrainingWork(60_000, 200, 400), WHOLE)
    # A token meets 6,979,321,856 weights of layers, and half of 600 others twice in 32 layers of 4,096;
    # a response token 525,336,576 of the head besides. Forward, two backward, and forward again.
    one_example = 2 * (600 * (6_979_321_856 + 32 * 4096 * 600) + 400 * 525_336_576)
    assert estimate.operations == pytest.approx(60_000 * 2 * 4 * one_example)
    assert estimate.device_hours == pytest.approx(estimate.operations / 312e12 / 3600)
    assert estimate.hours == pytest.approx(estimate.device_hours / 8)
    assert estimate.num_steps == 2 * 938
    assert estimate.num_tokens == 2 * 60_000 * 600


@pytest.mark.parametrize(
    ("stage", "bytes_of_a_weight"),
    [
        (0, 2 + 2 + 12),
        (1, 2 + 4 + 12 / 8),
        (2, 2 + 4 / 8 + 12 / 8),
        (3, 2 / 8 + 4 / 8 + 12 / 8),
    ],
)
def test_memory_of_the_stages_by_hand(stage: int, bytes_of_a_weight: float) -> None:
    estimate = estimate_training(run(f"train.deepspeed.zero_stage={stage}"), TrainingWork(64), WHOLE)
    # The bucket that stage 3 keeps has its greatest size here.
    bucket = 2 * 200_000_000 if stage == 3 else 0
    assert estimate.weights_bytes == pytest.approx(8_030_261_248 * bytes_of_a_weight + bucket, abs=8)
    assert estimate.host_bytes == 0


def test_what_is_offloaded_lies_on_the_host() -> None:
    plain = estimate_training(run(), TrainingWork(64), WHOLE)
    away = estimate_training(run("train.deepspeed.offload_optimizer=true"), TrainingWork(64), WHOLE)
    assert away.host_bytes == pytest.approx(8_030_261_248 * 12 / 8, abs=8)
    assert away.weights_bytes + away.host_bytes == plain.weights_bytes


@pytest.mark.parametrize(("precision", "bytes_of_a_weight"), [("float32", 16), ("bfloat16", 18)])
def test_a_plain_run_keeps_sixteen_bytes_a_weight_and_a_rounded_copy(precision: str, bytes_of_a_weight: int) -> None:
    config = load_config(RunConfig, [], ["models.strong.source=Qwen2.5-0.5B", f"train.precision={precision}"])
    estimate = estimate_training(config, TrainingWork(64), machines("L4"))
    assert estimate.weights_bytes == bytes_of_a_weight * 494_032_768
    assert estimate.checkpoint_bytes == 12 * 494_032_768


def test_checkpoints_by_hand() -> None:
    estimate = estimate_training(run("train.checkpoints.num_kept=2"), TrainingWork(64), WHOLE)
    assert estimate.checkpoint_bytes == (2 + 12) * 8_030_261_248
    assert estimate.disk_bytes == 3 * estimate.checkpoint_bytes + 2 * 8_030_261_248


def test_pairs_have_two_sides_and_a_reference_that_is_asked_once() -> None:
    samples = estimate_training(run(), TrainingWork(640), WHOLE)
    pairs = estimate_training(run("train.data={kind: joined}", "train.objective.name=dpo"), TrainingWork(640), WHOLE)
    twice = estimate_training(
        run("train.data={kind: joined}", "train.objective.name=dpo", "train.num_epochs=2"), TrainingWork(640), WHOLE
    )
    assert pairs.num_tokens == 2 * samples.num_tokens
    one_pass = 2 * samples.operations / 3
    assert pairs.operations == pytest.approx((3 + 1) * one_pass)
    assert twice.operations == pytest.approx((6 + 1) * one_pass)


def test_a_run_that_stops_early_takes_less() -> None:
    whole = estimate_training(run(), TrainingWork(640), WHOLE)
    half = estimate_training(run("train.max_steps=5"), TrainingWork(640), WHOLE)
    assert (whole.num_steps, half.num_steps) == (10, 5)
    assert half.operations == pytest.approx(whole.operations / 2)


def test_an_adapter_trains_few_weights_and_keeps_the_others() -> None:
    pytest.importorskip("peft")
    estimate = estimate_training(run("train.lora.rank=8"), TrainingWork(64), WHOLE)
    whole = estimate_training(run(), TrainingWork(64), WHOLE)
    assert estimate.num_trained == 32 * 8 * ((4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14_336) * 3)
    assert estimate.operations == pytest.approx(whole.operations * 2 / 3)
    assert estimate.checkpoint_bytes == 14 * estimate.num_trained
    assert estimate.weights_bytes < 0.2 * whole.weights_bytes


def test_an_adapter_on_some_layers_has_the_weights_of_those() -> None:
    pytest.importorskip("peft")
    estimate = estimate_training(run("train.lora={rank: 8, target_modules: [o_proj]}"), TrainingWork(64), WHOLE)
    assert estimate.num_trained == 32 * 8 * (4096 + 4096)
    with pytest.raises(ConfigError, match=r"train\.lora\.target_modules \['nothing'\] cannot be used"):
        estimate_training(run("train.lora={rank: 8, target_modules: [nothing]}"), TrainingWork(64), WHOLE)


@pytest.mark.parametrize("make", [*FAMILIES.values(), *MIXTURES.values()], ids=[*FAMILIES, *MIXTURES])
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_arithmetic_agrees_with_the_training_loops_own_count(make: Callable[[], Any], is_recomputed: bool) -> None:
    networks: Any = transformers.AutoModelForCausalLM
    model = networks.from_config(make())
    counted = StepArithmetic(model, is_recomputed=is_recomputed).operations(1000, 300)
    # Without attention, which that count leaves out.
    assert (4 if is_recomputed else 3) * _pass_operations(size_of_blueprint(model), 1000, 300, 0) == counted


def test_a_mixture_is_kept_whole_and_computed_in_part() -> None:
    config = load_config(RunConfig, [], ["models.strong.source=Qwen3-30B-A3B", *STATED[1:]])
    estimate = estimate_training(config, TrainingWork(64, 200, 400), WHOLE)
    bucket = 2 * 200_000_000
    assert estimate.weights_bytes == pytest.approx(30_532_122_624 * 18 / 8 + bucket, abs=8)
    assert estimate.checkpoint_bytes == 14 * 30_532_122_624
    assert (estimate.num_parameters, estimate.num_active) == (30_532_122_624, 3_353_032_704)
    # A token meets 2,730,491,904 weights of layers, and half of 600 others twice in 48 layers of 32 heads of 128.
    one_example = 2 * (600 * (2_730_491_904 + 48 * 4096 * 600) + 400 * 151_936 * 2048)
    assert estimate.operations == pytest.approx(64 * 3 * one_example)
    rows = {str(row[0]): row[1] for row in training_table(estimate).rows}
    assert (rows["weights"], rows["weights that a token meets"]) == ("30,532,122,624", "3,353,032,704")


@pytest.mark.parametrize(
    ("name", "of_a_layer", "num_layers", "hidden"),
    [
        # Input and sum, both normalised, queries, output, keys, values, and three products of the feed-forward part.
        ("Meta-Llama-3-8B", 4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14_336, 32, 4096),
        # The same with 32 and 4 heads of 128, 8 experts of 768 with an input and an output each, a router of 128.
        ("Qwen3-30B-A3B", 4 * 2048 + 2 * 4096 + 2 * 512 + 8 * (3 * 768 + 2 * 2048) + 128, 48, 2048),
    ],
)
def test_activations_by_hand(name: str, of_a_layer: int, num_layers: int, hidden: int) -> None:
    settings = [f"models.strong.source={name}", *STATED[1:], "train.batches.max_tokens_per_micro_batch=4096"]
    logits = 2 * (128_256 if name.startswith("Meta") else 151_936)
    plain = estimate_training(load_config(RunConfig, [], settings), TrainingWork(64), WHOLE)
    assert plain.activations_bytes == 2 * 4096 * (num_layers * of_a_layer + logits)
    spared = load_config(RunConfig, [], [*settings, "train.has_activation_checkpointing=true"])
    kept = num_layers * hidden + of_a_layer + logits
    assert estimate_training(spared, TrainingWork(64), WHOLE).activations_bytes == 2 * 4096 * kept


def test_devices_are_taken_to_do_what_training_says_they_can() -> None:
    for name, accelerator in ACCELERATORS.items():
        assert accelerator.operations_per_s == PEAK_TERAFLOPS[name.split("-")[0]] * 1e12


def test_checkpointing_trades_memory_for_arithmetic() -> None:
    plain = estimate_training(run(), TrainingWork(64), WHOLE)
    spared = estimate_training(run("train.has_activation_checkpointing=true"), TrainingWork(64), WHOLE)
    assert spared.activations_bytes < plain.activations_bytes / 3
    assert spared.operations == pytest.approx(plain.operations * 4 / 3)
    assert spared.weights_bytes == plain.weights_bytes


def test_one_process_has_one_device() -> None:
    config = load_config(RunConfig, [], ["models.strong.source=Qwen2.5-0.5B"])
    with pytest.raises(ConfigError, match="uses 1 device, and 8 are given; take deepspeed"):
        estimate_training(config, TrainingWork(64), WHOLE)


def test_the_table_says_whether_it_fits() -> None:
    fits = {
        stage: {str(row[0]): row[1] for row in training_table(estimate).rows}["fits into a device"]
        for stage in (0, 3)
        for estimate in [
            estimate_training(
                run(f"train.deepspeed.zero_stage={stage}", "train.has_activation_checkpointing=true"),
                TrainingWork(64),
                machines("A100-80GB", 8),
            )
        ]
    }
    assert fits == {0: False, 3: True}


def test_the_commands_print_tables(capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--set", "models.aligned.source=Qwen2.5-3B-a", "--set", "models.base.source=Qwen2.5-3B"]
    common = ["--num", "1000", "--accelerator", "H100", "--response-tokens", "300"]
    assert main(["estimate", "sampling", *common, *pair]) == 0
    assert "Sampling on 1 x H100" in capsys.readouterr().out
    assert main(["estimate", "training", *common, "--devices", "8", *(f"--set={setting}" for setting in STATED)]) == 0
    out = capsys.readouterr().out
    assert "Training on 8 x H100" in out
    assert "8,030,261,248" in out
    assert main(["estimate", "sampling", "--num", "10", *pair, "--set", "estimate.accelerator=L40S"]) == 0
    assert "Sampling on 1 x L40S" in capsys.readouterr().out
    assert main(["estimate", "sampling", "--num", "10", *pair]) == 2
    assert "give --accelerator, such as H100, or set estimate.accelerator" in capsys.readouterr().err
    assert main(["estimate", "training", *common, "--set", "models.strong.source=nobody"]) == 2
    assert "the size of 'nobody' is not known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "tokens"), [(["--prompt-tokens", "5000"], 5001), (["--response-tokens", "4000"], 4200)]
)
def test_a_mean_beyond_what_each_example_is_held_to_is_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], tokens: int
) -> None:
    amounts = ["--num", "10", "--accelerator", "H100", "--set", "models.strong.source=Qwen2.5-7B"]
    assert main(["estimate", "training", *amounts, *options]) == 2
    said = (
        f"a mean of {tokens} tokens is asked for, and train.batches.max_example_tokens = 4096 lets no example be longer"
    )
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--num", "--devices", "--prompt-tokens", "--response-tokens"])
def test_amounts_that_are_none_are_refused(capsys: pytest.CaptureFixture[str], option: str) -> None:
    amounts = ["--num", "10", "--accelerator", "H100", option, "-5"]
    assert main(["estimate", "sampling", *amounts]) == 2
    assert f"{option} is -5; give more than 0" in capsys.readouterr().err
