"""Invented names of streets, neighbourhoods and cities.

The pool of name roots is cut in two by a checksum: cities with a seed below `FIRST_PRETRAINING_SEED` ("demo" cities)
draw from one half, cities with a higher seed ("pretraining" cities, on which base models are trained) from the other.
A base model can therefore never have met a street of a demo city, whatever the seeds are.
"""

import itertools
import zlib
from collections.abc import Sequence

from data_gen.toy_city.arrays import random_stream
from data_gen.toy_city.plan import Plan, Street

FIRST_PRETRAINING_SEED = 1000
COUNTRY = "Arden"

_WORDS = """
Abbey Acorn Alder Almond Amber Anchor Anvil Apple Arbor Archer Aspen Aster Badger Baker Balsam Barley Basil Beacon
Beech Bellflower Birch Bishop Blacksmith Bluebell Bobbin Bonnet Brewery Briar Brook Butcher Buttercup Cabot Camellia
Campion Candle Canal Canterbury Carder Carpenter Carriage Castle Cedar Chandler Chapel Chestnut Chicory Church Cider
Clay Clover Cobbler Columbine Compass Cooper Copper Coral Cornflower Cotton Cowslip Crane Cricket Crocus Currant Cutler
Cypress Daffodil Dahlia Daisy Damson Deacon Delphine Dove Draper Drover Eagle Elder Elm Ember Engine Fairview Falcon
Farrier Fennel Fern Ferry Fiddler Finch Fir Fisher Flax Flint Forge Fountain Fowler Foxglove Friary Fuller Garnet
Gentian Ginger Glazier Glover Goldfinch Gorse Granary Grange Granite Grove Guildhall Hammer Harbor Harper Harrow
Harvest Hawthorn Hazel Heather Hemlock Heron Hickory Holly Honeysuckle Hops Hornbeam Hunter Iris Iron Ivory Ivy
Jasmine Jasper Jay Juniper Kestrel Kettle Keystone Kiln Kingfisher Lantern Larch Lark Larkspur Laurel Lavender Lilac
Lime Linden Linnet Locust Loom Lotus Lupin Madder Magnolia Magpie Mallow Mallet Maple Marble Marigold Mariner Market
Marten Mason Mead Medlar Merchant Mercer Meridian Mill Miller Mint Mistletoe Monk Moss Mulberry Myrtle Nettle
Nightingale Nutmeg Oak Oat Olive Opal Orchard Orchid Oriole Osier Osprey Otter Oxford Paddock Pansy Parson Partridge
Pear Pebble Pepper Pheasant Pine Pinnacle Pioneer Plane Plover Plum Pomander Poplar Poppy Potter Priory Primrose
Printer Quail Quarry Quartz Quince Raven Redwood Reed Regent Robin Rope Rose Rosemary Rowan Rudder Rye Saddler Saffron
Sage Sailmaker Salt Sandpiper Sapphire Schooner Sexton Shepherd Sickle Silver Skinner Slate Smith Snowdrop Sorrel
Sparrow Spindle Spinner Spruce Squire Starling Station Steeple Stone Sumac Summer Swallow Swan Sycamore Tailor Tamarack
Tannery Tanner Teal Temple Thatcher Thistle Thrush Thyme Tiller Timber Tinker Topaz Tower Tulip Turner Turnpike Twine
Vale Valerian Verbena Vesper Viaduct Vine Vintner Violet Wagon Walnut Warbler Warren Watermill Weaver Weir Wheat
Wheelwright Wicker Willow Windmill Winter Wisteria Woodbine Wool Wren Wright Yarrow Yew Zinnia
"""
_HEADS = """
Ash Ald Bar Bel Black Brad Bram Brent Bur Cald Carl Chad Chil Clif Col Cran Crom Dal Dar Del Dun East Edge Ell El Far
Fen Gar Gil Glen Gran Hal Ham Har Hart Hay Hern Hol Horn Hunt Kel Kil Kirk Lam Lang Lin Lit Mar Mel Mid Mil Nor Oak Os
Pem Pen Pres Rad Raven Red Rock Ross Rush Sel Shel Sher Stan Stock Sut Thorn Tor Wake Wal War Wes Wex Whit Win Wood Wyn
"""
_TAILS = (
    "bourne brook bury by combe cote croft dale den field ford gate ham hurst land ley low mere mont more stead ton"
)
_ORDINALS = "First Second Third Fourth Fifth Sixth Seventh Eighth Ninth Tenth Eleventh Twelfth Thirteenth Fourteenth"
_PLACE_ENDINGS = ("", " Heights", " Hill", " Park", " Quarter", " Green", " Village", " Flats", " End", " Point")
_CITY_ENDINGS = ("", " Falls", " Springs", " Bay", " City", "port", " Landing")
_STATES = ("North Arden", "East Arden", "Upper Arden", "Lower Arden", "Lakeland", "Westmark", "Highmark", "Seamark")
_TYPES = {
    "plain": ("Street", "Street", "Street", "Avenue", "Avenue", "Lane", "Road", "Drive", "Way", "Row", "Terrace"),
    "diagonal": ("Avenue", "Road", "Parade", "Way"),
    "curve": ("Crescent", "Circle", "Drive", "Bend"),
    "dual": ("Boulevard", "Parkway"),
    "dead_end": ("Court", "Place", "Close"),
}


def name_roots(seed: int, words: Sequence[str]) -> list[str]:
    """Return the words of a pool that cities of this seed's class may use."""
    half = 0 if seed < FIRST_PRETRAINING_SEED else 1
    return [word for word in words if zlib.crc32(word.encode()) % 2 == half]


def street_roots(seed: int) -> list[str]:
    """Return all the roots that street names of this seed's class are built from (a root decides the half)."""
    compounds = (head + tail for head, tail in itertools.product(_HEADS.split(), _TAILS.split()))
    return name_roots(seed, sorted({*_WORDS.split(), *_ORDINALS.split(), *compounds}))


def _name_streets(seed: int, streets: Sequence[Street]) -> list[str]:
    rng = random_stream(seed, "street names")
    words = name_roots(seed, _WORDS.split())
    ordinals = name_roots(seed, _ORDINALS.split())
    compounds = [root for root in street_roots(seed) if root not in words and root not in ordinals]
    for roots in (words, compounds, ordinals):
        rng.shuffle(roots)
    names: list[str] = []
    for street in streets:
        draw = rng.random()
        if draw < 0.08 and ordinals and street.kind == "plain":
            names.append(f"{ordinals.pop()} {rng.choice(['Street', 'Avenue'])}")
            continue
        pool = words if draw < 0.62 and words else compounds
        names.append(f"{pool.pop()} {rng.choice(_TYPES[street.kind])}")
    return names


def name_streets(seed: int, plan: Plan) -> list[str]:
    """Name every street of a plan; the plan's twin streets get one name, so it stands in two neighbourhoods.

    Args:
        seed: Seed of the city; it also decides the half of the pool.
        plan: The street network. Names come last: nothing of the plan or of the pictures depends on them.

    Returns:
        One name per street of the plan, in its order.
    """
    names = _name_streets(seed, plan.streets)
    for first, second in plan.twins:
        names[second] = names[first]
    return names


def name_neighbourhoods(seed: int, count: int) -> list[str]:
    """Return `count` different invented names of neighbourhoods."""
    rng = random_stream(seed, "neighbourhood names")
    compounds = [head + tail for head, tail in itertools.product(_HEADS.split(), ("land", "side", "view", "wood"))]
    roots = name_roots(seed, sorted(set(compounds)))
    picked = rng.choice(len(roots), size=count, replace=False)
    return [roots[index] + str(rng.choice(_PLACE_ENDINGS)) for index in picked]


def name_city(seed: int) -> tuple[str, str, str]:
    """Return the invented city, state and country of a seed."""
    rng = random_stream(seed, "city name")
    tails = ("ville", "chester", "minster", "bridge", "haven")
    roots = name_roots(seed, [head + tail for head, tail in itertools.product(_HEADS.split(), tails)])
    return str(rng.choice(roots)) + str(rng.choice(_CITY_ENDINGS)), str(rng.choice(_STATES)), COUNTRY
