"""A stand-in for the Supervisor in tests of plans."""


class NotingPool:
    """A PlanHost that records the submitted tasks and the reported messages."""

    def __init__(self) -> None:
        self.tasks, self.messages = [], []

    def submit(self, _, task) -> None:
        self.tasks.append(task)

    def report(self, message) -> None:
        self.messages.append(message)
