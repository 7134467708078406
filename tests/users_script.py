"""What `make lint` passes to mypy as a user would: right but for the last line, which must not be.

An ignored error that is none is an error, too.
"""

from pathlib import Path

import dfm_mlflow
from dfm_mlflow import DFM, AnomalyDetector, Options, client, load_model, train

detector: AnomalyDetector = load_model("models:/dfm-caps@production")
table = detector.score([Path("a.png"), "b.png", b"..."], fpr=0.02)
flags = detector.predict(["a.png"])
first: bool = bool(flags[0])
fitted = AnomalyDetector.from_images(["a.png"], ["caps"], fpr=0.02)
result = train(data="/pictures/caps", fpr=0.02)
uri: str = result.registered_uri
again = train(Options.parse({"data": "/pictures/caps"}), experiment="caps")
answer = client.score("http://127.0.0.1:5001", ["a.png"], fpr=0.02)
print(len(table), len(answer), DFM(n_components=0.9), dfm_mlflow.__version__, uri, first, fitted)
try:
    dfm_mlflow.save_model(detector, "model")
except dfm_mlflow.DfmError as error:
    print(error)
number: int = result.registered_uri  # type: ignore[assignment]
