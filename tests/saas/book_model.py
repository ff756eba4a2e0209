"""The books once more, in pure Python and by another hand: what every move must leave, grant by grant. Days are whole numbers."""

from dataclasses import dataclass, field


@dataclass
class Grant:
    """`number` is the order in which they were granted."""

    number: int
    total: int
    begins: int
    ends: int
    available: int = 0
    held: int = 0
    consumed: int = 0
    expired: int = 0
    revoked: int = 0
    owed: int = 0
    closed: bool = False

    def parts(self) -> tuple[int, ...]:
        return self.available, self.held, self.consumed, self.expired, self.revoked, self.owed

    def ledger(self) -> int:
        """What its lines must add up to."""
        return self.available + self.held


@dataclass
class Hold:
    draws: list[tuple[Grant, int]]

    @property
    def amount(self) -> int:
        return sum(part for _, part in self.draws)


@dataclass
class TakeBack:
    grant: Grant
    taken: int
    owed: int
    recovered: int = 0
    undone: bool = False


@dataclass
class Books:
    """One user's."""

    today: int = 0
    grants: list[Grant] = field(default_factory=list)
    holds: dict[int, Hold] = field(default_factory=dict)
    take_backs: list[TakeBack] = field(default_factory=list)

    def grant(self, credits: int, begins: int, ends: int) -> Grant:
        made = Grant(len(self.grants), credits, begins, ends, available=credits)
        self.grants.append(made)
        return made

    def usable(self) -> list[Grant]:
        """Decision 16: valid now, soonest to end first, then oldest."""
        valid = [grant for grant in self.grants if grant.begins <= self.today < grant.ends and grant.available]
        return sorted(valid, key=lambda grant: (grant.ends, grant.number))

    def left(self) -> int:
        return sum(grant.available for grant in self.usable())

    def hold(self, amounts: dict[int, int]) -> bool:
        """Whether they could be paid, all of them."""
        if sum(amounts.values()) > self.left():
            return False
        for item, amount in amounts.items():
            draws = []
            for grant in self.usable():
                part = min(amount, grant.available)
                grant.available -= part
                grant.held += part
                amount -= part
                draws.append((grant, part))
                if not amount:
                    break
            self.holds[item] = Hold(draws)
        return True

    def settle(self, item: int, charge: int) -> None:
        """The charge leaves in the order of drawing; the rest goes back in reverse, and nothing is lost."""
        for grant, part in self.holds.pop(item).draws:
            used = min(part, charge)
            charge -= used
            grant.held -= part
            grant.consumed += used
            self._return(grant, part - used)

    def _return(self, grant: Grant, credits: int) -> None:
        recovered = min(grant.owed, credits)
        self._give(grant, credits - recovered)
        grant.revoked += recovered
        grant.owed = min(grant.owed - recovered, grant.held)
        for debt in self.take_backs:
            if debt.grant is grant and not debt.undone:
                part = min(recovered, debt.owed - debt.recovered)
                debt.recovered += part
                recovered -= part

    def _give(self, grant: Grant, credits: int) -> None:
        if grant.ends <= self.today:
            grant.expired += credits
        else:
            grant.available += credits

    def expire(self) -> None:
        for grant in self.grants:
            if grant.ends <= self.today and not grant.closed:
                grant.expired += grant.available
                grant.available, grant.closed = 0, True

    def deduct(self, credits: int) -> bool:
        if credits > self.left():
            return False
        for grant in self.usable():
            part = min(credits, grant.available)
            grant.available -= part
            grant.revoked += part
            credits -= part
        return True

    def take_back(self, grant: Grant, credits: int) -> TakeBack:
        taken = min(credits, grant.available)
        owed = min(credits - taken, grant.held - grant.owed)
        grant.available -= taken
        grant.revoked += taken
        grant.owed += owed
        made = TakeBack(grant, taken, owed)
        self.take_backs.append(made)
        return made

    def give_back(self, debt: TakeBack) -> int:
        if debt.undone:
            return 0
        debt.undone = True
        credits = debt.taken + debt.recovered
        debt.grant.revoked -= credits
        debt.grant.owed = max(0, debt.grant.owed - (debt.owed - debt.recovered))
        self._give(debt.grant, credits)
        return credits
