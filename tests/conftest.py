"""Small networks are fastest on one thread, and hypothesis keeps no data base in a source tree."""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "attackcheck", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("attackcheck")
