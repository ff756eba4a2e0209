"""Records: upstream's services on Postgres, tenant by tenant. Only this package commits."""
