"""What doctor finds, for tests of its checks."""

from psycopg.conninfo import conninfo_to_dict

from invokeai_saas.operating import doctor
from invokeai_saas.operating.doctor import examine


def as_url(dsn):
    """The address as an operator writes it."""
    parts = conninfo_to_dict(dsn)
    login = f"{parts.get('user', 'postgres')}:{parts.get('password') or 'TOPSECRET'}"
    return f"postgresql://{login}@/{parts['dbname']}?host={parts['host']}&port={parts.get('port', 5432)}"


def findings(settings, name):
    """What one check found, as (level, message)."""
    return [(found.level, found.message) for found in examine(settings, {name: doctor.CHECKS[name]})]


def levels(settings, name):
    return [level for level, _ in findings(settings, name)]
