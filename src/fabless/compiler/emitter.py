"""Emit: a list of instructions that grows, with registers and semaphores by name, hardware loops as `with` blocks, and merged syncs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from fabless.core.errors import InfeasibleError
from fabless.program.isa import BY_MNEMONIC, N_REGISTERS, N_SEMAPHORES, Instruction, instruction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fabless.program.tile import Tile

_ADDRESS_LIMIT = BY_MNEMONIC["load"].by_name["address"].high


class Emitter:
    """Collect instructions. `merge`: neighbouring syncs of one queue become one where that keeps their order."""

    def __init__(self, tile: Tile, *, merge: bool = True) -> None:
        self.tile = tile
        self.items: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self._merge = merge
        self._registers: dict[str, int] = {}
        self._semaphores: dict[str, int] = {}
        self._free = list(range(N_REGISTERS - 1, 0, -1))

    def __call__(self, mnemonic: str, **operands: int | str) -> None:
        """Append one instruction; operands as `isa.instruction` takes them, but an address may need more bits than its field: a register has them."""
        address = operands.get("address", 0)
        if isinstance(address, int) and address > _ADDRESS_LIMIT:
            register = int(operands.get("address_reg", 0))
            self.items.append(instruction("madd", x=self.x("far"), p=register, mul=1, imm=address))
            operands = operands | {"address": 0, "address_reg": self.x("far")}
        self.items.append(instruction(mnemonic, **operands))

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        self.labels[name] = len(self.items)

    def x(self, name: str) -> int:
        """Return the register of that name, taking a free one at first use."""
        if name not in self._registers:
            if not self._free:
                raise InfeasibleError(
                    f"program: more than {N_REGISTERS - 1} registers are live at '{name}'; compile for one kind of layer at a time"
                )
            self._registers[name] = self._free.pop()
        return self._registers[name]

    def release(self, *names: str) -> None:
        """Give registers back."""
        for name in names:
            self._free.append(self._registers.pop(name))

    def set(self, name: str, value: int = 0, *, of: str | None = None, times: int = 1, plus: str | None = None) -> None:
        """Write a register: value + of * times + plus."""
        self("madd", x=self.x(name), p=self.x(of) if of else 0, mul=times if of else 0, q=self.x(plus) if plus else 0, imm=value)

    def add(self, name: str, value: int) -> None:
        """Add a constant to a register."""
        self("madd", x=self.x(name), q=self.x(name), imm=value)

    def toggle(self, name: str, total: int) -> None:
        """Write total - X: a register that alternates between two places whose sum is total."""
        self("madd", x=self.x(name), p=self.x(name), mul=-1, imm=total)

    def param(self, name: str, index: int, plus: str | None = None) -> None:
        """Write a register from parameter memory."""
        self("param", x=self.x(name), at=index, at_reg=self.x(plus) if plus else 0)

    def semaphore(self, name: str) -> int:
        """Return the number of a named semaphore."""
        number = self._semaphores.setdefault(name, len(self._semaphores))
        if number >= N_SEMAPHORES:
            raise InfeasibleError(f"program: more than {N_SEMAPHORES} semaphores at '{name}'")
        return number

    def wait(self, queue: str, *names: str) -> None:
        """Make a queue wait for semaphores."""
        self._sync(queue, sum(1 << self.semaphore(n) for n in names), 0)

    def signal(self, queue: str, *names: str) -> None:
        """Make a queue signal semaphores."""
        self._sync(queue, 0, sum(1 << self.semaphore(n) for n in names))

    def _sync(self, queue: str, wait: int, signal: int) -> None:
        last = self.items[-1] if self.items else None
        if (
            self._merge
            and last is not None
            and last.mnemonic == "sync"
            and last.choice("queue") == queue
            and self._mergeable(last, wait, signal)
        ):
            self.items.pop()
            wait, signal = wait | last["wait"], signal | last["signal"]
        self("sync", queue=queue, wait=wait, signal=signal)

    def _mergeable(self, last: Instruction, wait: int, signal: int) -> bool:
        after_signal = bool(last["signal"]) and bool(wait)  # one sync waits before it signals
        return not (after_signal or wait & last["wait"] or signal & last["signal"])

    @contextmanager
    def loop(self, count: int = 0, counter: str | None = None) -> Iterator[None]:
        """Repeat what is emitted inside: `count` times, or as often as a register says. One trip needs no loop."""
        if counter is None and count == 1:
            yield
            return
        at = len(self.items)
        self("loop")
        yield
        length = len(self.items) - at - 1
        self("end")
        self.items[at] = instruction("loop", count=0 if counter else count, count_reg=self.x(counter) if counter else 0, length=length)
