import pytest
from tests.pipeline.test_kill import kill_and_run_again
@pytest.mark.parametrize("seed", range(20,26))
def test_fuzz(configure, undisturbed, tmp_path, seed):
    kill_and_run_again(configure(), undisturbed, tmp_path, num_kills=4, seed=seed)
