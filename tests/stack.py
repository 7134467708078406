"""The stack that ``make stack`` runs, for the tests."""

from .servers import ServerError  # noqa: F401, I001  # puts examples/ on the path
from stack import (  # noqa: F401
    BUCKET,
    MOTO_KEYS,
    Postgres,
    find_postgres,
    make_bucket,
    mlflow_server,
    postgres,
    s3,
)
