"""Photos whose names state where they were taken, as in sets for place recognition."""

import utm


def photo_name(lat: float, lon: float, /, *, zone: str = "10", band: str = "S", **fields: str) -> str:
    """``@east@north@zone@band@lat@lon@...@.jpg``; ``fields`` are the further ones, "" if not given."""
    east, north, _, _ = utm.from_latlon(lat, lon)
    more = [fields.get(key, "") for key in ("pano", "tile", "heading", "pitch", "roll", "height", "time", "note")]
    degrees = [fields.get("lat", f"{lat:.5f}"), fields.get("lon", f"{lon:.5f}")]
    return "@".join(["", f"{east:.2f}", f"{north:.2f}", zone, band, *degrees, *more, ".jpg"])
