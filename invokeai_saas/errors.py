"""Errors of the SaaS: small classes, each with the HTTP status it answers with."""


class SaasError(Exception):
    """A business or operating error; `status` is what an HTTP route answers."""

    status = 500


class BadSettings(SaasError):
    """A setting is missing or wrong; the message names the variable and never its value."""


class DatabaseUnavailable(SaasError):
    """The database did not answer in time; the caller may try again."""

    status = 503


class TenantContextMissing(SaasError):
    """Code reached the database without saying for whom; nothing was sent."""


class TenantContextClash(SaasError):
    """Work for one tenant was started inside another tenant's transaction."""


class UnknownStatement(SaasError):
    """An SQLite statement that the translation has no rule for; the message holds the statement."""


class MigrationRefused(SaasError):
    """The database cannot be migrated by this code: newer than it, or changed since."""


class MigrationLocked(SaasError):
    """Another process held the migration lock for longer than the timeout."""
