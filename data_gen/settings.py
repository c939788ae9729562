"""The options of ``python -m data_gen.build``, their checks, and the identity of a build."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_gen.annotations import parse_sources
from data_gen.caption import CaptionModelSettings
from data_gen.photo_check import list_files
from data_gen.photo_names import UtmZone, parse_zone
from data_gen.photos import PhotoColumns
from data_gen.services import ServiceSettings
from data_gen.streets import DEFAULT_HIGHWAYS, MARGIN_M
from llava_ial.errors import UserError
from llava_ial.manifest import file_hash

CAPTIONERS = ("constant", "csv", "annotation", "model", "server")
SPLITTERS = ("fractions", "given", "blocked")
QUESTIONS = ("measured", "all")
SOURCES = ("table", "exif", "vpr", "pitts250k", "mapillary")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(kw_only=True)
class BuildSettings(CaptionModelSettings, ServiceSettings):
    """What a data set is made of. Paths are relative to the current folder; ~ is the home folder."""

    image_root: Path = field(metadata=_help("folder of the photos"))
    streets: Path | None = field(
        default=None,
        metadata=_help("map: an .osm.pbf extract, or GeoJSON lines with 'name' and 'highway'; none with annotations"),
    )
    source: str = field(
        default="",
        metadata=_help(
            "where positions are: table (photos_csv), exif, vpr (file names with @ fields), pitts250k (its folders and "
            "a UTM table), mapillary (JSON of its API beside the photos); default: table if photos_csv is given, else "
            "exif"
        ),
    )
    photos_csv: Path | None = field(
        default=None, metadata=_help("table of photos with positions (.csv, .jsonl or .parquet)")
    )
    utm_zone: str = field(
        default="", metadata=_help("positions are UTM metres of this zone, as in 17N; default: degrees")
    )
    utm_east_column: str = field(default="utm_east", metadata=_help("column of photos_csv, with utm_zone"))
    utm_north_column: str = field(default="utm_north", metadata=_help("column of photos_csv, with utm_zone"))
    annotations: list[str] = field(
        default_factory=list,
        metadata=_help("published addresses instead of a map: SPLIT=FILE.json in AddressCLIP's form, one or more"),
    )
    require_images: bool = field(
        default=True, metadata=_help("false accepts rows whose photos are not here; true checks that each decodes")
    )
    image_path_column: str = field(default="image_path", metadata=_help("column of photos_csv: file below image_root"))
    image_id_column: str = field(
        default="image_id", metadata=_help("column of photos_csv: unique name; absent: the file's path")
    )
    lat_column: str = field(default="lat", metadata=_help("column of photos_csv: latitude in degrees"))
    lon_column: str = field(default="lon", metadata=_help("column of photos_csv: longitude in degrees"))
    heading_column: str = field(
        default="heading_deg", metadata=_help("column of photos_csv: viewing direction, degrees clockwise from north")
    )
    panorama_column: str = field(
        default="panorama_id", metadata=_help("column of photos_csv: photos of one panorama share a split")
    )
    captured_at_column: str = field(default="captured_at", metadata=_help("column of photos_csv: ISO 8601 time"))
    split_column: str = field(
        default="split", metadata=_help("column of photos_csv: train, val or test, used by 'split: given'")
    )
    panorama_radius_m: float = field(
        default=15.0, metadata=_help("photos without a panorama id this near each other share a split")
    )
    highways: list[str] = field(
        default_factory=lambda: list(DEFAULT_HIGHWAYS),
        metadata=_help("kinds of street, values of OpenStreetMap's highway tag"),
    )
    neighbourhoods: Path | None = field(default=None, metadata=_help("GeoJSON polygons with 'name'"))
    city: str = field(default="", metadata=_help("city, as it ends an answer; default: the extract's label"))
    region: str = field(default="", metadata=_help("state or region, as it ends an answer"))
    country: str = field(default="", metadata=_help("country, as it ends an answer"))
    max_distance_m: float = field(default=50.0, metadata=_help("a photo farther from every named street is dropped"))
    ambiguous_margin_m: float = field(
        default=5.0, metadata=_help("second street less than this much farther: never a test photo; 0: off")
    )
    vote_radius_m: float = field(
        default=0.0, metadata=_help("positions this near vote on their street together; 0: each its nearest street")
    )
    min_piece_m: float = field(
        default=60.0, metadata=_help("crossings closer than this to a more important one do not cut a street")
    )
    min_positions: int = field(
        default=5, metadata=_help("sub-streets with fewer photo positions join a neighbour (5 in the paper)")
    )
    snap_m: float = field(default=0.5, metadata=_help("lines whose points are this near each other meet"))
    captioner: str = field(
        default="constant", metadata=_help("constant (one sentence), csv (a column), annotation, model (BLIP), server")
    )
    caption: str = field(
        default="a street view", metadata=_help("the sentence of the constant captioner, and where a CSV has none")
    )
    captions_csv: Path | None = field(
        default=None, metadata=_help("table of captions, joined by image_id_column; default: photos_csv")
    )
    caption_column: str = field(default="caption", metadata=_help("column of the captions"))
    house_number_m: float = field(
        default=20.0,
        metadata=_help("a photo this near to a numbered house of its street is asked for the number; 0: no photo is"),
    )
    split: str = field(
        default="fractions",
        metadata=_help(
            "fractions (drawn by panorama), given (split_column; folders train, val, test of source vpr) or blocked "
            "(whole cells of the city, a buffer between them)"
        ),
    )
    block_m: float = field(default=300.0, metadata=_help("side of a cell of 'split: blocked'"))
    buffer_m: float = field(default=50.0, metadata=_help("'split: blocked' keeps train this far from val and test"))
    val_fraction: float = field(
        default=0.1, metadata=_help("share of the panoramas; of annotations without a val split, of those of train")
    )
    test_fraction: float = field(default=0.1, metadata=_help("share of the panoramas, but with annotations"))
    photo_licence: str = field(default="", metadata=_help("licence of the photos, as the data card states it"))
    num_dialogues: int = field(
        default=0,
        metadata=_help(
            "questions all: the most dialogues of a photo, 0 for as many as its questions make; measured: "
            "its questions are shared out over so many, 0 for 2"
        ),
    )
    questions: str = field(
        default="all",
        metadata=_help(
            "all (every kind; half of the questions of each kind open a dialogue) or measured (only the kinds that an "
            "evaluation scores; a photo's first dialogue opens with the open question)"
        ),
    )
    negatives: Path | None = field(
        default=None, metadata=_help("folder of photos of elsewhere: asked for their address, the answer is a refusal")
    )
    max_times_mean: float = field(
        default=4.0,
        metadata=_help(
            "training photos of one sub-street that are talked about, at most so many times the mean of all; 0: all"
        ),
    )
    max_photos_per_sub_street: int = field(
        default=0, metadata=_help("training photos of one sub-street that are talked about, as a number; 0: all")
    )
    rows_a_part: int = field(
        default=65_536, metadata=_help("photos in one file of a table: the unit of work that is shared out and resumed")
    )
    llava_json: bool = field(
        default=True, metadata=_help("false leaves out llava/*.json, which tens of millions of photos make too large")
    )
    seed: int = field(default=0, metadata=_help("another number, another draw of splits, wordings and wrong streets"))

    def __post_init__(self) -> None:
        for name in _PATHS:
            path = getattr(self, name)
            setattr(self, name, path.expanduser() if path is not None else None)

    def check(self) -> None:
        """Refuses what cannot work before anything is read or written.

        Raises:
            UserError: Names the field, the value and the mend.
        """
        for name in _PATHS:
            path = getattr(self, name)
            is_there = path is None or (path.is_dir() if name in _FOLDERS else path.is_file())
            if not is_there:
                kind = "folder" if name in _FOLDERS else "file"
                raise UserError(f"{name}: there is no {kind} {path}; mend the path (it starts at {Path.cwd()})")
        _check_choice("captioner", self.captioner, CAPTIONERS)
        _check_choice("split", self.split, SPLITTERS)
        _check_choice("questions", self.questions, QUESTIONS)
        for name in ("max_photos_per_sub_street", "num_dialogues"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)}; at least 0")
        if self.max_times_mean and not self.max_times_mean >= 1:
            raise UserError(f"max_times_mean: {self.max_times_mean}; at least 1, or 0 for no such cap")
        self._check_source()
        self.check_service()
        self.check_captioner(self.captioner)
        if self.captioner in ("model", "server") and not self.require_images:
            raise UserError(f"captioner: {self.captioner} looks at the photos; it needs require_images: true")
        if self.geocoder != "map" and (self.vote_radius_m or self.streets is None):
            raise UserError("geocoder: a service needs streets for their geometry, and no vote_radius_m")
        for name in _LENGTHS:
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}: {getattr(self, name)}; at least 0")
        if not 0 < self.max_distance_m <= MARGIN_M:
            raise UserError(f"max_distance_m: {self.max_distance_m}; above 0, at most {MARGIN_M:g}")
        for name in ("min_positions", "rows_a_part"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}; at least 1")
        for name in ("city", "region", "country"):
            if "," in getattr(self, name):
                raise UserError(
                    f"{name}: '{getattr(self, name)}' holds a comma, which separates the parts of an address"
                )
        if self.captioner == "csv" and self.captions_file is None:
            raise UserError("captioner: csv needs captions_csv (or photos_csv with the column caption_column)")
        if self.split == "given" and self.photos_csv is None and self.photo_source != "vpr":
            raise UserError("split: given needs photos_csv with the column split_column, or source: vpr")
        if not self.block_m > 0:
            raise UserError(f"block_m: {self.block_m}; above 0")
        if not self.caption.strip():
            raise UserError("caption: empty; give a sentence")

    def _check_source(self) -> None:
        if self.source:
            _check_choice("source", self.source, SOURCES)
        if self.photo_source in ("table", "pitts250k") and self.photos_csv is None:
            raise UserError(f"source: {self.photo_source} needs photos_csv")
        if self.photo_source == "pitts250k" and not self.utm_zone:
            raise UserError("source: pitts250k needs utm_zone; Pittsburgh lies in 17N")
        _ = self.zone  # refuses what is no zone
        sources = parse_sources(self.annotations)
        for _, path in sources:
            if not path.is_file():
                raise UserError(f"annotations: there is no file {path}; mend the path (it starts at {Path.cwd()})")
        if bool(sources) == (self.streets is not None):
            raise UserError("streets: give a map, or annotations with published addresses, and not both")
        if self.captioner == "annotation" and not sources:
            raise UserError("captioner: annotation needs annotations")

    @property
    def photo_source(self) -> str:
        """Where positions are read from."""
        return self.source or ("exif" if self.photos_csv is None else "table")

    @property
    def zone(self) -> UtmZone | None:
        """The UTM zone of the positions, None for degrees."""
        return parse_zone(self.utm_zone) if self.utm_zone else None

    @property
    def captions_file(self) -> Path | None:
        """Where captions are read from."""
        return self.captions_csv or self.photos_csv

    @property
    def columns(self) -> PhotoColumns:
        """Column names of the photo table."""
        return PhotoColumns(
            image_path=self.image_path_column,
            lat=self.lat_column,
            lon=self.lon_column,
            image_id=self.image_id_column,
            heading=self.heading_column,
            panorama=self.panorama_column,
            captured_at=self.captured_at_column,
            split=self.split_column,
            utm_east=self.utm_east_column,
            utm_north=self.utm_north_column,
        )

    def identity(self) -> dict[str, Any]:
        """The settings and the content of the inputs, as JSON values: equal for two builds of equal files."""
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}
        files = {name: getattr(self, name) for name in _PATHS if name not in _FOLDERS}
        inputs = {name: file_hash(path) for name, path in files.items() if path is not None}
        for split, path in parse_sources(self.annotations):
            inputs[f"annotations_{split}_{path.name}"] = file_hash(path)
        if self.photo_source != "table":
            inputs["image_root"] = _listing_hash(self.image_root)
        if not self.max_times_mean:  # folders that were made before there was this cap are of the same build
            del settings["max_times_mean"]
        if self.negatives is not None:
            inputs["negatives"] = _listing_hash(self.negatives)
        return {**settings, "inputs": inputs}


_LENGTHS = (
    "panorama_radius_m",
    "ambiguous_margin_m",
    "vote_radius_m",
    "min_piece_m",
    "snap_m",
    "buffer_m",
    "house_number_m",
)
_FOLDERS = ("image_root", "negatives")
_PATHS = (*_FOLDERS, "streets", "photos_csv", "neighbourhoods", "captions_csv")


def _listing_hash(folder: Path) -> str:
    listing = "\n".join(f"{p.relative_to(folder).as_posix()} {p.stat().st_size}" for p in list_files(folder))
    return hashlib.sha256(listing.encode()).hexdigest()


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: '{value}'; allowed: {', '.join(allowed)}")
