"""Arm a worker as its parent was armed to be killed; Python imports this module at its start."""

import json
import os

if (request := os.environ.get("ANTIGRAM_TEST_KILL")) is not None:
    from tests.support.command_server import arm

    arm(**json.loads(request))
