"""Autoplastic: which residual blocks, channels and paths stay, by how stable they are or by gradient.

Korban, Youngs, Acton, *Autoplastic Neural Network*, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph import Analysis, analyse
from autocompress.methods.autoplastic.config import Config
from autocompress.methods.autoplastic.install import add_attention, install
from autocompress.methods.autoplastic.learned_gates import Learned
from autocompress.methods.autoplastic.memory import Memory
from autocompress.methods.autoplastic.plasticity import Plasticity
from autocompress.methods.autoplastic.switches import Switches, Values
from autocompress.methods.base import Finished, Method, ParamGroup, Session
from autocompress.models.mixing import Mixing
from autocompress.surgery import DropBranches, Edit, GateBranches, RemoveGates, keep_units
from autocompress.surgery.branches import drop_branches
from autocompress.task import ModelProfile, Task
from autocompress.task.inputs import moved

_PREFIX = "autoplastic_"


class Autoplastic(Method):
    """P on every residual branch, C on every unit of every coupled channel group, α on mixing blocks.

    Under the "gradient" rule the loss gains λ_arch · Σ cost·gate. In the first half of the training λ_arch
    fades in; in the second gates move to 0 or 1, whichever side of the threshold they are, so that what is
    trained becomes what is kept. Under the published rule P and C move once an epoch by how stable the
    weights are, and α is trained in unstable blocks alone.
    """

    Config: ClassVar[type[Config]] = Config

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        """Refuse a model without a channel group."""
        return None if profile.groups else "no channel group of the model can be removed"

    @classmethod
    def needs_graph(cls, model: nn.Module, analysis: Analysis) -> bool:
        """Whether there are branches or mixing blocks to gate."""
        return bool(analysis.residuals) or any(isinstance(module, Mixing) for module in model.modules())

    def start(self, model: nn.Module, task: Task) -> AutoplasticSession:
        """Put the three kinds of gates, P, C and α, on the model.

        Raises:
            TrialError: the model's graph does not compute what it does, or no logit stands for a block's α.
        """
        return AutoplasticSession(self.config, model, task)


class _Refresh:
    """Forward pre-hook that hands out the gates; a class, because closures do not pickle."""

    def __init__(self, session: AutoplasticSession) -> None:
        self.session = session

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.session.refresh()


class AutoplasticSession(Session):
    """The gated model, its gates, and what the published rule remembers of weights and gradients.

    Attributes:
        switches: the gates on the model.
        branched: whether it has residual branches or mixing blocks, which are gated in its graph.
        raw: P, C and α as they are stored: logits under the "gradient" rule, values under the published.
        memory: of weights and gradients; None but for the published rule.
        progress: share of the training that is done.
        live: what the last forward pass of the step was run with, with its graph.
    """

    def __init__(self, config: Config, model: nn.Module, task: Task) -> None:
        self.config, self.progress = config, 0.0
        self.example = task.example()
        self.begun: list[Edit] = list(add_attention(model, task)) if config.add_attention else []
        self.switches = switches = install(model, task)
        # A model without branches and mixing blocks keeps its class; only its channels are gated.
        self.branched = bool(switches.branches or switches.mixings)
        if self.branched:
            self.begun.append(GateBranches(switches.gates))
        self.model = switches.model
        raw = switches.start(config.p_init, config.c_init, config.alpha_init)
        if config.rule == "gradient":
            _check_alphas(switches, raw.alpha)
        self.raw = raw if config.rule == "published" else self._learned.logits(raw, switches.strength)
        self.memory = Memory.of(switches) if config.rule == "published" else None
        for name in switches.mixings:
            # Its own α is written back at the end.
            switches.gate(f"{name}.conv_share").weight.requires_grad_(False)
        for name in self._trained:
            gate = nn.Parameter(getattr(self.raw, name))
            self.model.register_parameter(_PREFIX + name, gate)
            self.raw = self.raw._replace(**{name: gate})
        self.live: Values | None = None
        self.hook = self.model.register_forward_pre_hook(_Refresh(self))

    @property
    def _plasticity(self) -> Plasticity:
        config = self.config
        names = ("decay", "epsilon", "eta", "p_min", "c_min", "c_max")
        return Plasticity(config.stability == "relative", *(getattr(config, name) for name in names))

    @property
    def _learned(self) -> Learned:
        config = self.config
        return Learned(config.p_min, config.c_min, config.c_max, config.c_spread)

    @property
    def _trained(self) -> tuple[str, ...]:
        """Gates that are parameters; the published rule moves P and C itself."""
        return Values._fields if self.config.rule == "gradient" else ("alpha",)

    def param_groups(self) -> list[ParamGroup]:
        """Give the gates that train a learning rate of their own, without weight decay."""
        gates = [gate for gate in self.raw if isinstance(gate, nn.Parameter)]
        own = {id(gate) for gate in gates}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        # η_a = η_w / 20 as published.
        scale = self.config.gate_lr_scale if self.config.rule == "gradient" else 1 / 20
        return [ParamGroup(rest), ParamGroup(gates, scale, weight_decay=0.0)]

    def refresh(self) -> None:
        """Compute the gates from the present parameters and hand them out."""
        values = self.values()
        self.live = values if torch.is_grad_enabled() else None
        self.switches.turn(values)

    def values(self) -> Values:
        """P, C and α as the model is run with them."""
        if self.memory is not None:
            p, c, alpha = self.raw
            return Values(p, c, torch.where(self.memory.open, alpha, alpha.detach()))
        soft, share = self._learned.gates(self.raw), 2 * self.progress - 1
        if share <= 0:
            return soft
        t, edge = self.config.threshold, self.config.alpha_threshold
        hard = self.switches.hardened(soft, t, edge, opened=True)
        return Values(*((1 - share) * a + share * b.detach() for a, b in zip(soft, hard, strict=True)))

    def final(self) -> Values:
        """Gates as they are carried out."""
        with torch.no_grad():
            t, edge = self.config.threshold, self.config.alpha_threshold
            return self.switches.hardened(self.values(), t, edge)

    def penalty(self) -> Tensor:
        """Charge λ_arch for the share of MACs behind open gates, faded in; `()`, 0 by the published rule."""
        if self.config.rule == "published":
            return torch.zeros(())
        # Fading in: at first no block or channel has shown yet what it is worth.
        share = self.switches.cost(self.values() if self.live is None else self.live)
        penalty: Tensor = self.config.lambda_arch * min(1.0, 2 * self.progress) * share
        return penalty

    def after_step(self, progress: float) -> None:
        """Collect gradients where the rule is the published one, and let go of the step's graph."""
        self.progress = progress
        if self.memory is not None:
            self.memory.collect(self.model)
            self.memory.hold(self.raw.alpha)
        self.live = None
        self.switches.let_go()

    def after_epoch(self, progress: float) -> Mapping[str, float]:
        """The paper's log line: L_eff, share of active channels, P, α, mean C, share of MACs pruned; and the
        stability of each block where gates follow it."""
        stability: dict[str, float] = {}
        if self.memory is not None:
            self.raw = self.memory.epoch(self.raw, self.switches, self._plasticity)
            stability = {f"stability/{name}": s for name, s in self.memory.stability.items()}
        with torch.no_grad():
            # A copy of the model is without the hook, and runs with the gates that it finds.
            self.refresh()
            return self.switches.line(self.values(), self.final()) | stability

    def finish(self) -> Finished:
        """What ends shut is taken out of the graph; what stays is folded into the layers."""
        final = self.final()
        plain = self.release()
        probe = moved(self.example, next(plain.parameters()).device)
        cut = keep_units(plain.eval(), analyse(plain, self.example), self.switches.keep(final), probe)
        if not self.branched:
            return Finished(cut.model, (*self.begun, *cut.edits), cut.masked)
        shut = self.switches.shut(final)
        edits = [*self.begun, RemoveGates(self.switches.folded), *cut.edits, DropBranches(shut)]
        compact: Any = cut.model
        return Finished(drop_branches(compact, shut), tuple(edits), cut.masked)

    def release(self) -> nn.Module:
        """The trained model with its gates multiplied into its layers; those that are shut stay in it."""
        self.hook.remove()
        final = self.final()
        for name in self._trained:
            delattr(self.model, _PREFIX + name)
        return self.switches.fold(final)


def _check_alphas(switches: Switches, alphas: Tensor) -> None:
    """Refuse a block's own α that no logit stands for; raises TrialError."""
    for name, alpha in zip(switches.mixings, alphas.tolist(), strict=True):
        if not 0 < alpha < 1:
            raise TrialError(
                f"α of mixing block {name!r} must be in (0, 1) where rule = 'gradient' but is {alpha}; "
                "give alpha_init, or rule = 'published'."
            )
