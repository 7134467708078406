"""What the calibrations of a detector's classes say: thresholds and the promise."""

from dfm_mlflow.config import Options
from dfm_mlflow.detector.class_model import ClassModel
from dfm_mlflow.detector.decision import calibration_sentence


class CalibratedClasses:
    """The classes of a detector with its options.

    Attributes
    ----------
    options : Options
        Resolved options.
    classes : tuple of ClassModel
        One for each class.
    """

    options: Options
    classes: tuple[ClassModel, ...]

    @property
    def n_components(self) -> int:
        """Dimensions of the subspaces, summed over layers and classes."""
        return sum(layer.subspace.n_components for c in self.classes for layer in c.layers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(c.name for c in self.classes)

    def thresholds(self, fpr: float | None = None) -> dict[str, float]:
        """Anomaly score above which an image of each class is flagged.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        dict of str to float
            By the class's name.
        """
        rate = self._rate(fpr)
        return {c.name: c.calibration.threshold(rate) for c in self.classes}

    def effective_fpr(self, fpr: float | None = None) -> float:
        """False-positive rate that p-values are compared with, of the class with fewest images.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        float
        """
        return max(c.calibration.effective_fpr(self._rate(fpr)) for c in self.classes)

    def promised_fpr(self, fpr: float | None = None) -> float:
        """Share of good pictures that may be flagged: more than the former with declared dirt.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        float
        """
        return max(c.calibration.promised_fpr(self._rate(fpr)) for c in self.classes)

    def calibration_sentence(self, fpr: float | None = None) -> str:
        """Say in one sentence where the threshold comes from and what it promises.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        str
        """
        options = self.options
        return calibration_sentence(
            self.classes, self._rate(fpr), options.retest_rate, options.contamination
        )

    def _rate(self, fpr: float | None) -> float:
        return self.options.fpr if fpr is None else fpr
