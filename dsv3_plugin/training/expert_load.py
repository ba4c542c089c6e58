"""How the step's tokens were spread over experts, ranks and nodes, and what that sent."""

from dsv3_plugin.dispatch.step_metrics import collect_step_metrics, discard_counts
from dsv3_plugin.training.hooks import Hook, Step


class ExpertLoad(Hook):
    """Tells load and traffic of the step; evaluations before it do not count."""

    def before_step(self, step: Step) -> None:
        discard_counts(step.model)

    def after_step(self, step: Step) -> None:
        step.numbers |= collect_step_metrics(step.model)
