"""Modules of several models are told apart by the model's class and order."""

import copy

import torch
from torch import nn

from memplan.recording.modules_seen import ModulesSeen
from memplan.recording.root_models import RootModels


class Generator(nn.Sequential):
    """A model of a class of its own."""


class Discriminator(nn.Sequential):
    """Another."""


def net(kind=nn.Sequential):
    return kind(nn.Linear(2, 2), nn.ReLU())


def shown(models, root, module):
    return models.shown(models.paths(root)[id(module)])


def test_the_modules_of_one_model_have_their_own_names():
    """No prefix where there is nothing to tell apart; a loss without parameters is no model."""
    models, one, loss = RootModels(), net(), nn.MSELoss()

    assert shown(models, one, one[0]) == "0"
    assert shown(models, loss, loss) == "MSELoss"
    assert shown(models, one, one[0]) == "0"
    assert shown(models, one, one) == ""


def test_two_models_are_told_apart_by_class():
    """Names met before the second model came have the prefix, too."""
    models, one, other = RootModels(), net(Generator), net(Discriminator)
    path = models.paths(one)[id(one[0])]
    assert shown(models, other, other[0]) == "Discriminator.0"
    assert models.shown(path) == "Generator.0"
    assert shown(models, one, one) == "Generator"


def test_a_second_model_of_a_class_has_its_order():
    """An average of the weights is a model of the same class."""
    models, one = RootModels(), net(Generator)
    average = copy.deepcopy(one)
    models.paths(one)

    assert shown(models, average, average[1]) == "Generator (2).1"
    assert shown(models, one, one[1]) == "Generator.1"


def test_a_wrapper_and_what_it_wraps_are_one_model():
    """In either order of their first calls."""
    for first in (0, 1):
        models, one = RootModels(), net()
        both = (nn.Sequential(one), one)
        models.paths(both[first])
        models.paths(both[1 - first])
        assert shown(models, one, one[0]) in {"0", "0.0"}


def test_modules_that_are_made_anew_are_not_counted_on():
    """The name of a model that is gone is free again."""
    models = RootModels()
    for _ in range(3):
        made = net()
        path = models.paths(made)[id(made)]
        del made
    assert path.startswith("Sequential\x1e")


def test_a_model_hidden_in_a_list_is_followed_and_the_outer_one_goes_on():
    """A teacher within a student's forward has names of its own."""

    class Student(nn.Module):
        """Holds its teacher so that it is no submodule."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
            self.teacher = [net(Generator)]

        def forward(self, x):
            return self.last(self.first(x) + self.teacher[0](x))

    told = []
    seen = ModulesSeen(told.append)
    student = Student()
    hooks = (
        nn.modules.module.register_module_forward_pre_hook(seen._enter),
        nn.modules.module.register_module_forward_hook(seen._leave),
    )
    try:
        student(torch.ones(1, 2))
    finally:
        for hook in hooks:
            hook.remove()
    paths = [seen.models.shown(one.partition("\x1f")[2]) for one in told]
    expected = ["Student", "Student.first", "Student", "Generator", "Generator.0", "Generator",
                "Generator.1", "Generator", "Student", "Student.last", "Student", ""]  # fmt: skip
    assert expected == paths
