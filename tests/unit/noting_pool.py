"""In place of the Supervisor, for a plan."""


class NotingPool:
    """Notes what a plan wants of it."""

    def __init__(self) -> None:
        self.tasks, self.messages = [], []

    def submit(self, _, task) -> None:
        self.tasks.append(task)

    def report(self, message) -> None:
        self.messages.append(message)
