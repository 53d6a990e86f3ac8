from silc_bench.api import Results as Results
from silc_bench.api import compare as compare
from silc_bench.api import evaluate as evaluate
from silc_bench.api import leaderboard as leaderboard
from silc_bench.api import train as train
from silc_bench.errors import DataError as DataError
from silc_bench.errors import RunError as RunError
from silc_bench.errors import UserError as UserError
from silc_bench.models.adapters.in_memory import wrap as wrap
from silc_bench.models.load import load_model as load_model
from silc_bench.reports.forms.frame import load_results as load_results

__version__: str
OFFERED: dict[str, str]
