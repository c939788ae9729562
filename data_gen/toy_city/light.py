"""Sun, sky, air and camera electronics of one capture."""

from dataclasses import dataclass

import numpy as np

from data_gen.toy_city.arrays import FloatArray, random_stream

WEATHERS = ("clear", "partly cloudy", "overcast", "hazy")
_WEATHER_SHARES = {"clear": 0.35, "partly cloudy": 0.3, "overcast": 0.22, "hazy": 0.13}


@dataclass(frozen=True)
class Light:
    """How a capture is lit and developed. Colours are linear, 1 = a white wall in full light.

    Attributes:
        weather: One of `WEATHERS`.
        hour: Local time of day in hours.
        to_sun: (2,) horizontal unit vector towards the sun, x east.
        sun_slope: Tangent of the sun's elevation.
        sun: (3,) strength of the direct light.
        ambient: (3,) strength of the diffuse light.
        zenith: (3,) colour of the sky above.
        horizon: (3,) colour of the sky at the horizon, and of the haze.
        clouds: Share of the sky that is cloudy, 0 to 1.
        haze_m: Distance in metres at which haze takes 63 %.
        gain: (3,) exposure and white balance.
        gamma: Exponent of the development.
        saturation: 1 leaves colours as they are.
        noise: Standard deviation of the sensor's noise, in 8-bit steps.
        cloud_seed: Where in the cloud pattern the sky starts.
    """

    weather: str
    hour: float
    to_sun: FloatArray
    sun_slope: float
    sun: FloatArray
    ambient: FloatArray
    zenith: FloatArray
    horizon: FloatArray
    clouds: float
    haze_m: float
    gain: FloatArray
    gamma: float
    saturation: float
    noise: float
    cloud_seed: int


def draw_weather(seed: int, day: int) -> str:
    """Draw the weather of a day; it holds for all captures of that day."""
    rng = random_stream(seed, "weather", day)
    return str(rng.choice(list(_WEATHER_SHARES), p=list(_WEATHER_SHARES.values())))


def draw_light(seed: int, day: int, panorama: int) -> Light:
    """Draw the light of one capture: the day's weather, an hour of its own, a camera's own white balance.

    Args:
        seed: Seed of the city.
        day: Number of the day.
        panorama: Number of the panorama.
    """
    weather = draw_weather(seed, day)
    rng = random_stream(seed, "light", panorama)
    hour = float(rng.uniform(7.5, 18.5))
    elevation = np.radians(6.0 + 50.0 * np.sin(np.pi * (hour - 6.5) / 13.0) + rng.uniform(-3.0, 3.0))
    azimuth = np.radians(90.0 + (hour - 6.5) / 13.0 * 180.0)
    low = float(np.clip(1.0 - elevation / np.radians(32.0), 0.0, 1.0))
    warm = np.array([1.0 + 0.22 * low, 1.0 - 0.02 * low, 1.0 - 0.34 * low])
    direct = {"clear": 0.85, "partly cloudy": 0.62, "overcast": 0.03, "hazy": 0.3}[weather]
    diffuse = {"clear": 0.66, "partly cloudy": 0.72, "overcast": 0.95, "hazy": 0.88}[weather]
    blue = {"clear": 1.0, "partly cloudy": 0.85, "overcast": 0.0, "hazy": 0.25}[weather]
    zenith = blue * np.array([0.34, 0.56, 0.90]) + (1 - blue) * np.array([0.66, 0.70, 0.75])
    horizon = blue * np.array([0.78, 0.87, 0.95]) + (1 - blue) * np.array([0.80, 0.82, 0.84])
    balance = np.exp(rng.normal(0.0, (0.06, 0.02, 0.06)))
    return Light(
        weather=weather,
        hour=hour,
        to_sun=np.array([np.sin(azimuth), np.cos(azimuth)]),
        sun_slope=float(np.tan(elevation)),
        sun=direct * warm * (1.0 - 0.25 * low),
        ambient=diffuse * np.array([0.95, 1.0, 1.06]) * (1.0 - 0.2 * low),
        zenith=zenith * (1.0 - 0.22 * low),
        horizon=horizon * (0.45 * warm + 0.55) * (1.0 - 0.1 * low),
        clouds={"clear": 0.08, "partly cloudy": 0.5, "overcast": 0.85, "hazy": 0.3}[weather],
        haze_m={"clear": 420.0, "partly cloudy": 340.0, "overcast": 260.0, "hazy": 140.0}[weather],
        gain=balance * float(np.exp(rng.normal(0.12, 0.13))),
        gamma=float(rng.uniform(0.82, 1.07)),
        saturation=float(rng.uniform(0.84, 1.2)),
        noise=float(rng.uniform(1.5, 4.5)),
        cloud_seed=int(rng.integers(1 << 16)),
    )
