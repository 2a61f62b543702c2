"""What a run will take before anything is started: GPU hours, memory and disk, from sizes and stated assumptions.

Pure arithmetic on a configuration and on files' headers; loads no weights, asks no device, and knows no prices.
"""

from cong.estimate.accelerators import ACCELERATORS, Accelerator, Machines, machines
from cong.estimate.network_size import NetworkSize, size_of
from cong.estimate.sampling import SamplingEstimate, SamplingWork, estimate_sampling
from cong.estimate.tables import sampling_table, training_table
from cong.estimate.training import TrainingEstimate, TrainingWork, estimate_training

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Machines",
    "NetworkSize",
    "SamplingEstimate",
    "SamplingWork",
    "TrainingEstimate",
    "TrainingWork",
    "estimate_sampling",
    "estimate_training",
    "machines",
    "sampling_table",
    "size_of",
    "training_table",
]
