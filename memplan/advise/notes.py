"""What a reader must know of a card's predictions: other versions, figures chosen, bounds."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.advise.question import Question
from memplan.capabilities import Noted
from memplan.device.card import Card
from memplan.device.context import older_than_cudnn_9
from memplan.device.cublas import RULES_RELEASE
from memplan.device.cudnn import installed_version
from memplan.device.cudnn_beside import can_be_asked, names_installed, oldest, way_to_keep
from memplan.device.replay import Simulator
from memplan.fit.growth import faster_growth
from memplan.tape import Tape
from memplan.units import format_bytes


def notes_on(simulator: Simulator, question: Question) -> tuple[str, ...]:
    """Return what a reader must know of a card's predictions, a sentence each."""
    made = question.made
    notes = list(made.notes()) if isinstance(made, Noted) else []
    notes += [simulator.oracle.note] if simulator.oracle.note else []
    notes += [_note_on_torch(simulator.release)] if simulator.release != RULES_RELEASE else []
    notes += [_note_on_cudnn(question)] if _is_other_cudnn(question) else []
    notes += [_note_on_context(simulator, question.cuda_version)] if question.cuda_version else []
    if simulator.oracle.benchmark:
        notes.append(
            "cudnn.benchmark takes the plan that proves fastest, which only the card can tell; "
            "workspace is the most that any of the plans it times may ask for."
        )
    return tuple(notes)


def _note_on_torch(installed: tuple[int, int]) -> str:
    read, here = (".".join(map(str, release)) for release in (RULES_RELEASE, installed))
    return (
        f"What operators take was read from PyTorch {read}, and torch {here} is installed; where "
        "it differs, so may the answer."
    )


def _is_other_cudnn(question: Question) -> bool:
    """Return whether training is said to use a cuDNN that cannot be the installed one."""
    if question.cudnn is not None:
        return True
    if question.cudnn_version is not None:
        return not names_installed(question.cudnn_version)
    return question.cuda_version is not None and older_than_cudnn_9(question.cuda_version)


def _note_on_cudnn(question: Question) -> str:
    if question.cudnn is not None:
        return (
            f"cuDNN {question.cudnn.version} in {question.cudnn.folder} was asked for workspaces, "
            f"not the installed {installed_version()}."
        )
    theirs = question.cudnn_version
    named = f"not {theirs}" if theirs else f"and CUDA {question.cuda_version} has cuDNN 8 or older"
    said = f"cuDNN {installed_version()} was asked for workspaces, {named}; another version plans "
    if theirs and can_be_asked(theirs):
        return f"{said}other ones. Put it beside to ask it: {way_to_keep(theirs)}"
    return f"{said}other ones. Before {oldest()} none can be asked about a card that is not there."


def _note_on_context(simulator: Simulator, cuda_version: str) -> str:
    outside = simulator.outside
    size = f"{format_bytes(outside.num_bytes)} +- {format_bytes(outside.uncertainty_bytes)}"
    if simulator.card.loads_eagerly:
        return f"Context taken as {size}: {outside.source}."
    return (
        f"Context taken as {size}: under CUDA {cuda_version} kernels are loaded when first used, "
        f"so it is the card's own ({outside.source})."
    )


def growth_notes(recorded: Sequence[Tape]) -> tuple[str, ...]:
    """Return a sentence where memory grows faster than affine in the batch; else none.

    Args:
        recorded: tapes of one configuration.
    """
    growth = faster_growth({one.description.micro_batch_size: one for one in recorded})
    if growth is None:
        return ()
    low, high = growth.line_batches
    sentence = (
        f"Memory grows faster than affine in the batch: at batch {growth.batch} operators "
        f"allocate {growth.factor:.3g} times what the line through batches {low} and {high} says. "
        "What is answered was recorded at its own batch."
    )
    return (sentence,)


def attention_note(tape: Tape, cards: Sequence[Card]) -> str:
    """Return a sentence on cards that run another kernel of attention than was recorded, if any."""
    others = [one.name for one in cards if not tape.is_for(one.compute_capability)]
    if not others:
        return ""
    recorded = ".".join(map(str, tape.description.compute_capability))
    return (
        f"Attention was recorded as compute capability {recorded} runs it; another kernel runs "
        f"on {', '.join(others)}, so these bytes may be some percent off. `memplan probe --gpu "
        "NAME` records for the card named."
    )
