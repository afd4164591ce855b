"""`memplan run`: values from the host survive, and rules answer for those that nobody computed."""

import sys

from cli_run import SCRIPTS, memplan_run, script


def test_values_from_the_host_survive():
    """A script that asserts values through 50 kinds of operators runs to its end."""
    done = memplan_run(
        "--gpu", "a100-80gb", command=[sys.executable, str(SCRIPTS / "values_kept.py")]
    )
    assert done.returncode == 0, done.stderr
    assert "all kept" in done.stderr


def test_a_line_can_be_given_its_value(tmp_path):
    """`--read FILE:LINE=VALUE` decides what the script reads there."""
    command = script(
        tmp_path,
        "import torch\n"
        "net = torch.nn.Linear(4, 1).cuda()\n"
        "loss = net(torch.ones(2, 4).cuda()).sum()\n"
        "assert loss.item() == 7.5\n",
    )
    assert memplan_run("--gpu", "t4", "--read", "script.py:4=7.5", command=command).returncode == 0
    assert memplan_run("--gpu", "t4", command=command).returncode == 1


def test_a_loop_that_waits_for_a_value_is_named(tmp_path):
    """A loop on a value that nobody computes ends, and its line is said."""
    command = script(
        tmp_path,
        "import torch\n"
        "w = torch.nn.Linear(4, 1).cuda().weight\n"
        "while w.sum().item() > 0.1:\n"
        "    pass\n",
    )
    done = memplan_run("--gpu", "t4", command=command)

    assert done.returncode == 1
    assert "script.py:3 has read a value 20000 times" in done.stdout
    assert "--read script.py:3=VALUE" in done.stdout


def test_what_nobody_computed_is_answered_so_that_scripts_go_on(tmp_path):
    """Truths hold, counts have their sum, suppression keeps a part: as `docs/run.md` states."""
    command = script(
        tmp_path,
        "import math, torch, torchvision\n"
        "net = torch.nn.Linear(16, 4).cuda()\n"
        "out = net(torch.ones(1000, 16).cuda())\n"
        "assert (out.exp() > 0).all() and torch.allclose(out, out)\n"
        "torch.distributions.Categorical(probs=out.softmax(-1)).sample()\n"
        "torch.distributions.Normal(out, out.exp()).rsample()\n"
        "counts = torch.bincount(out.argmax(1), minlength=4).tolist()\n"
        "assert sum(counts) == 1000 and len(out.split(counts)) == 4\n"
        "kept = torchvision.ops.nms(out, out[:, 0], 0.5)\n"
        "assert len(kept) == 200, len(kept)\n"
        "for loss in (out.pow(2).mean(), (out[:8] ** 2).mean()):\n"
        "    assert math.isfinite(loss.item()) and loss.item() > 0, loss.item()\n",
    )
    done = memplan_run("--gpu", "t4", "--selected", "0.2", command=command)

    assert 0 == done.returncode, done.stderr


def test_an_error_after_a_made_up_value_says_so(tmp_path):
    """The line that read it is named, and how it gets another value."""
    command = script(
        tmp_path,
        "import torch\n"
        "out = torch.nn.Linear(4, 4).cuda()(torch.ones(2, 4).cuda())\n"
        "best = out.argmax().item()\n"
        "[1, 2][best + 2]\n",
    )
    told = memplan_run("--gpu", "t4", command=command)
    given = memplan_run("--gpu", "t4", "--read", "script.py:3=-1", command=command)

    assert 1 == told.returncode
    assert "script.py:3 read 0 by rule" in " ".join(told.stdout.split())
    assert 0 == given.returncode, given.stderr


def test_no_operator_fails_for_being_watched():
    """Attention, recurrent layers, pooling, decompositions and optimizers run to the end."""
    script_of_many = str(SCRIPTS / "many_operators.py")
    done = memplan_run("--gpu", "rtx-3090", command=[sys.executable, script_of_many])

    assert 0 == done.returncode, done.stderr
    assert "all ran" in done.stderr
