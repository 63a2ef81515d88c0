import getpass
import json
import socket

import torch

import glocal
from glocal.bench import describe_environment


def test_environment_names_the_machine_but_not_its_owner():
    environment = describe_environment()
    text = json.dumps(environment)
    assert environment["torch"] == torch.__version__.split("+")[0] or environment["torch"] == torch.__version__
    assert environment["glocal"] == glocal.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert 1 <= environment["cores"] <= 4096
    assert 0.1 < environment["memory_gib"] < 1e5
    assert environment["cpu"]
    assert environment["gpu"] is None
    for key in ("platform", "python", "torchvision", "timm", "lightning-fabric"):
        assert environment[key]
    hostname, user = socket.gethostname(), getpass.getuser()
    assert hostname == "localhost" or hostname not in text
    assert len(user) < 5 or user not in text
