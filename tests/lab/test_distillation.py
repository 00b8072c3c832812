import copy

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.lab.distillation import distil, steps_for
from sparsecraft.lab.tasks.digits import DigitsMLP, DigitsViT


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> DigitsMLP:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSECRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = DigitsMLP(steps=80)
        made.load_model()
        yield made


def damaged(task, scale: float = 0.5) -> torch.nn.Module:
    student = task.load_model()
    with torch.no_grad():
        for number, parameter in enumerate(student.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += scale * parameter.std() * noise
    return student


def test_the_student_comes_nearer_to_the_teacher_which_stays(task):
    teacher, student = task.load_model(), damaged(task)
    before = copy.deepcopy(teacher.state_dict())
    outcome = distil(student, teacher, task, steps=60)
    assert outcome.steps == 60
    assert outcome.examples == 60 * 32
    assert outcome.last_loss < 0.5 * outcome.first_loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_same_steps_and_seed_give_the_same_student(task):
    found = []
    for seed in (0, 0, 1):
        student = damaged(task)
        distil(student, task.load_model(), task, steps=5, seed=seed)
        found.append(torch.cat([p.flatten() for p in student.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_measuring_the_steps_leaves_the_student_as_it_is(task):
    student = damaged(task)
    before = copy.deepcopy(student.state_dict())
    few = steps_for(student, task.load_model(), task, seconds=1e-6)
    many = steps_for(student, task.load_model(), task, seconds=60)
    assert few == 1
    assert many > 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_hidden_states_of_the_blocks_are_matched_too():
    task = DigitsViT(steps=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = task.build().eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "head" not in name and parameter.dim() > 1:
                parameter *= 0.9
    outcome = distil(student, teacher, task, steps=30)
    assert outcome.last_loss < 0.7 * outcome.first_loss


def test_progress_counts_the_steps(task):
    seen = []
    distil(damaged(task), task.load_model(), task, steps=3, progress=lambda *a: seen.append(a))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_no_steps_and_a_loss_that_is_not_finite(task):
    with pytest.raises(InvalidValue, match="steps=0"):
        distil(damaged(task), task.load_model(), task, steps=0)
    broken = damaged(task)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(NonFinite, match="at step 0"):
        distil(broken, task.load_model(), task, steps=1)
