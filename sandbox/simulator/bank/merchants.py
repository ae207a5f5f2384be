"""Provide the catalogue of merchants with their categories, logos and stores.

Names and websites are those of well-known companies; ids, stores and amounts are invented. Entity ids do not depend
on the seed: as at Plaid, they are the same for every bank.
"""

import random
from collections.abc import Iterable
from decimal import Decimal

from sandbox.simulator.bank.places import CITIES, STREETS, City
from sandbox.simulator.bank.randomness import derive, plaid_id
from sandbox.simulator.bank.transactions import Category, Counterparty, Merchant, Place

STORES_PER_MERCHANT = 24
"""Stores drawn for each merchant with a street address; fewer would repeat visibly in a demo."""

# name | website | detailed category | channel | lowest and highest usual amount, in hundredths | MCC |
# flags: t takes tips, h holds an estimate while pending, s has stores | descriptor, {n} a number, {c} a city
_CATALOGUE = """
Starbucks|starbucks.com|FOOD_AND_DRINK_COFFEE|in store|295|1850|5814|s|STARBUCKS STORE {n}
Dunkin'|dunkindonuts.com|FOOD_AND_DRINK_COFFEE|in store|245|1590|5814|s|DUNKIN #{n}
Blue Bottle Coffee|bluebottlecoffee.com|FOOD_AND_DRINK_COFFEE|in store|450|2400|5814|ts|SQ *BLUE BOTTLE COFFEE
McDonald's|mcdonalds.com|FOOD_AND_DRINK_FAST_FOOD|in store|399|3200|5814|s|MCDONALD'S F{n}
Chipotle Mexican Grill|chipotle.com|FOOD_AND_DRINK_FAST_FOOD|in store|985|4200|5814|s|CHIPOTLE {n}
Chick-fil-A|chick-fil-a.com|FOOD_AND_DRINK_FAST_FOOD|in store|650|3900|5814|s|CHICK-FIL-A #{n}
Shake Shack|shakeshack.com|FOOD_AND_DRINK_RESTAURANT|in store|890|5200|5812|ts|SHAKE SHACK {n}
The Cheesecake Factory|thecheesecakefactory.com|FOOD_AND_DRINK_RESTAURANT|in store|3500|18500|5812|ts|CHEESECAKE {c}
Nobu|noburestaurants.com|FOOD_AND_DRINK_RESTAURANT|in store|9000|64000|5812|ts|NOBU {c}
Café Zoë|cafezoe.example|FOOD_AND_DRINK_RESTAURANT|in store|1200|7800|5812|ts|TST* CAFE ZOE
Total Wine & More|totalwine.com|FOOD_AND_DRINK_BEER_WINE_AND_LIQUOR|in store|1499|22000|5921|s|TOTAL WINE {n}
Whole Foods Market|wholefoodsmarket.com|FOOD_AND_DRINK_GROCERIES|in store|1200|26000|5411|s|WHOLEFDS {c} {n}
Trader Joe's|traderjoes.com|FOOD_AND_DRINK_GROCERIES|in store|900|14500|5411|s|TRADER JOE S #{n}
Kroger|kroger.com|FOOD_AND_DRINK_GROCERIES|in store|700|21000|5411|s|KROGER #{n}
Costco Wholesale|costco.com|GENERAL_MERCHANDISE_SUPERSTORES|in store|2500|48000|5300|s|COSTCO WHSE #{n}
Walmart|walmart.com|GENERAL_MERCHANDISE_SUPERSTORES|in store|550|23000|5411|s|WM SUPERCENTER #{n}
Target|target.com|GENERAL_MERCHANDISE_SUPERSTORES|in store|650|19500|5310|s|TARGET T-{n}
Amazon|amazon.com|GENERAL_MERCHANDISE_ONLINE_MARKETPLACES|online|599|32000|5942|h|AMZN Mktp US*{n}
eBay|ebay.com|GENERAL_MERCHANDISE_ONLINE_MARKETPLACES|online|899|28000|5999||EBAY O*{n}
Etsy|etsy.com|GENERAL_MERCHANDISE_ONLINE_MARKETPLACES|online|1200|14000|5947||PAYPAL *ETSY {n}
Best Buy|bestbuy.com|GENERAL_MERCHANDISE_ELECTRONICS|in store|1999|189900|5732|s|BEST BUY {n}
Apple|apple.com|GENERAL_MERCHANDISE_ELECTRONICS|online|99|249900|5732||APPLE.COM/BILL {n}
The Home Depot|homedepot.com|HOME_IMPROVEMENT_HARDWARE|in store|499|64000|5200|s|THE HOME DEPOT #{n}
Lowe's|lowes.com|HOME_IMPROVEMENT_HARDWARE|in store|599|52000|5200|s|LOWES #{n}
IKEA|ikea.com|HOME_IMPROVEMENT_FURNITURE|in store|1999|145000|5712|s|IKEA {c}
Nike|nike.com|GENERAL_MERCHANDISE_CLOTHING_AND_ACCESSORIES|online|2900|26000|5661||NIKE.COM {n}
Zara|zara.com|GENERAL_MERCHANDISE_CLOTHING_AND_ACCESSORIES|in store|1900|21000|5651|s|ZARA USA {n}
Nordstrom|nordstrom.com|GENERAL_MERCHANDISE_DEPARTMENT_STORES|in store|2400|62000|5311|s|NORDSTROM #{n}
Barnes & Noble|barnesandnoble.com|GENERAL_MERCHANDISE_BOOKSTORES_AND_NEWSSTANDS|in store|799|9800|5942|s|B&N {n}
Petco|petco.com|GENERAL_MERCHANDISE_PET_SUPPLIES|in store|899|18500|5995|s|PETCO {n}
Shell|shell.com|TRANSPORTATION_GAS|in store|1800|9800|5542|hs|SHELL OIL {n}
Chevron|chevron.com|TRANSPORTATION_GAS|in store|1900|9600|5542|hs|CHEVRON {n}
Uber|uber.com|TRANSPORTATION_TAXIS_AND_RIDE_SHARES|online|790|8900|4121|th|UBER *TRIP {n}
Lyft|lyft.com|TRANSPORTATION_TAXIS_AND_RIDE_SHARES|online|690|7800|4121|t|LYFT *RIDE {n}
BART|bart.gov|TRANSPORTATION_PUBLIC_TRANSIT|in store|240|4800|4111|s|BART-CLIPPER {n}
E-ZPass|e-zpassny.com|TRANSPORTATION_TOLLS|online|175|4000|4784||E-ZPASS REBILL {n}
Delta Air Lines|delta.com|TRAVEL_FLIGHTS|online|8900|164000|3058||DELTA AIR {n}
United Airlines|united.com|TRAVEL_FLIGHTS|online|7900|182000|3000||UNITED {n}
Marriott|marriott.com|TRAVEL_LODGING|in store|12900|142000|3509|hs|MARRIOTT {c}
Airbnb|airbnb.com|TRAVEL_LODGING|online|8900|210000|4722||AIRBNB * {n}
Hertz|hertz.com|TRAVEL_RENTAL_CARS|in store|4900|94000|3357|hs|HERTZ RENT-A-CAR {n}
DoorDash|doordash.com|FOOD_AND_DRINK_RESTAURANT|online|1490|9800|5812|t|DD DOORDASH {n}
Uber Eats|ubereats.com|FOOD_AND_DRINK_RESTAURANT|online|1390|9400|5812|t|UBER *EATS {n}
Netflix|netflix.com|ENTERTAINMENT_TV_AND_MOVIES|online|799|2299|4899||NETFLIX.COM
Spotify|spotify.com|ENTERTAINMENT_MUSIC_AND_AUDIO|online|1099|1999|5815||SPOTIFY USA {n}
AMC Theatres|amctheatres.com|ENTERTAINMENT_TV_AND_MOVIES|in store|1249|8900|7832|s|AMC {n} {c}
Steam|steampowered.com|ENTERTAINMENT_VIDEO_GAMES|online|499|6999|5816||STEAMGAMES.COM {n}
Ticketmaster|ticketmaster.com|ENTERTAINMENT_SPORTING_EVENTS_AMUSEMENT_PARKS_AND_MUSEUMS|online|3500|48000|7922||TM *{n}
Comcast Xfinity|xfinity.com|RENT_AND_UTILITIES_INTERNET_AND_CABLE|online|4999|18900|4899||COMCAST CABLE COMM
Verizon|verizon.com|RENT_AND_UTILITIES_TELEPHONE|online|3500|24000|4814||VERIZON WRLS {n}
PG&E|pge.com|RENT_AND_UTILITIES_GAS_AND_ELECTRICITY|online|3800|32000|4900||PGANDE WEB ONLINE {n}
CVS Pharmacy|cvs.com|MEDICAL_PHARMACIES_AND_SUPPLEMENTS|in store|399|12800|5912|s|CVS/PHARMACY #{n}
Walgreens|walgreens.com|MEDICAL_PHARMACIES_AND_SUPPLEMENTS|in store|349|9800|5912|s|WALGREENS #{n}
Kaiser Permanente|kaiserpermanente.org|MEDICAL_PRIMARY_CARE|in store|2000|45000|8062|s|KAISER PERM {c}
Planet Fitness|planetfitness.com|PERSONAL_CARE_GYMS_AND_FITNESS_CENTERS|online|1000|4900|7997||PLANET FIT CLUB FEES
Supercuts|supercuts.com|PERSONAL_CARE_HAIR_AND_BEAUTY|in store|1900|8500|7230|ts|SUPERCUTS {n}
GEICO|geico.com|GENERAL_SERVICES_INSURANCE|online|5900|28900|6300||GEICO *AUTO {n}
FedEx|fedex.com|GENERAL_SERVICES_POSTAGE_AND_SHIPPING|in store|899|9900|4215|s|FEDEX OFFIC{n}
Udemy|udemy.com|GENERAL_SERVICES_EDUCATION|online|999|19999|8299||UDEMY ONLINE COURSE
Dropbox|dropbox.com|GENERAL_SERVICES_OTHER_GENERAL_SERVICES|online|1199|2400|5734||DROPBOX*{n}
American Red Cross|redcross.org|GOVERNMENT_AND_NON_PROFIT_DONATIONS|online|1000|50000|8398||AMERICAN RED CROSS
""".strip()

# Where the first taxonomy and the second differ; every other category kept its names.
_SECOND_TAXONOMY = {
    "INCOME_WAGES": ("INCOME", "INCOME_SALARY"),
    "INCOME_OTHER_INCOME": ("INCOME", "INCOME_OTHER"),
    "TRANSFER_IN_CASH_ADVANCES_AND_LOANS": ("LOAN_DISBURSEMENTS", "LOAN_DISBURSEMENTS_OTHER_DISBURSEMENT"),
    "BANK_FEES_OTHER_BANK_FEES": ("BANK_FEES", "BANK_FEES_OTHER"),
}

_PRIMARIES = (
    "BANK_FEES",
    "ENTERTAINMENT",
    "FOOD_AND_DRINK",
    "GENERAL_MERCHANDISE",
    "GENERAL_SERVICES",
    "GOVERNMENT_AND_NON_PROFIT",
    "HOME_IMPROVEMENT",
    "INCOME",
    "LOAN_PAYMENTS",
    "MEDICAL",
    "PERSONAL_CARE",
    "RENT_AND_UTILITIES",
    "TRANSFER_IN",
    "TRANSFER_OUT",
    "TRANSPORTATION",
    "TRAVEL",
)


def category(detailed: str) -> Category:
    """Make the category of a detailed name, with its primary one and both versions.

    Source: Plaid's list of personal finance categories: a detailed name begins with its primary one.
    """
    primary = next(name for name in _PRIMARIES if detailed.startswith(name))
    primary_v2, detailed_v2 = _SECOND_TAXONOMY.get(detailed, (primary, detailed))
    return Category(primary=primary, detailed=detailed, primary_v2=primary_v2, detailed_v2=detailed_v2)


def logo_of(name: str) -> str:
    """Name the picture of a merchant, as Plaid's own host does."""
    slug = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name.lower())
    return f"https://plaid-merchant-logos.plaid.com/{slug}_{sum(map(ord, name)) % 1500}.png"


def party(name: str, kind: str, *, website: str | None = None) -> Counterparty:
    """Make a counterparty with its stable entity id."""
    return Counterparty(
        name=name,
        type=kind,
        entity_id=plaid_id(derive("entity", name)),
        website=website,
        logo_url=logo_of(name) if website else None,
    )


def catalogue(seed: int) -> tuple[Merchant, ...]:
    """Return every merchant with stores drawn from the seed."""
    return tuple(_merchant(line, seed) for line in _CATALOGUE.splitlines())


def stores(rng: random.Random, cities: Iterable[City], count: int) -> tuple[Place, ...]:
    """Draw street addresses; some banks know less of a place, so some fields are null."""
    choices = tuple(cities)
    return tuple(_store(rng, rng.choice(choices)) for _ in range(count))


def _merchant(line: str, seed: int) -> Merchant:
    name, website, detailed, channel, lowest, highest, code, flags, descriptor = line.split("|")
    places = stores(derive(seed, "stores", name), CITIES, STORES_PER_MERCHANT) if "s" in flags else ()
    parties = [party(name, "marketplace" if name in _MARKETPLACES else "merchant", website=website)]
    for prefix, intermediary in _INTERMEDIARIES.items():
        if descriptor.startswith(prefix):
            parties.append(intermediary)
    return Merchant(
        name=name,
        entity_id=str(parties[0].entity_id),
        website=website,
        logo_url=parties[0].logo_url,
        category=category(detailed),
        counterparties=tuple(parties),
        channel=channel,
        descriptor=descriptor,
        code=code,
        lowest=int(lowest),
        highest=int(highest),
        takes_tips="t" in flags,
        holds="h" in flags,
        places=places,
    )


def _store(rng: random.Random, city: City) -> Place:
    knows_street = rng.random() < 0.7
    knows_point = rng.random() < 0.6
    return Place(
        address=f"{rng.randrange(1, 9900)} {rng.choice(STREETS)}" if knows_street else None,
        city=city.name,
        region=city.region,
        postal_code=city.postal_code if knows_street else None,
        country=city.country,
        lat=city.lat + Decimal(rng.randrange(-40_000, 40_000)).scaleb(-6) if knows_point else None,
        lon=city.lon + Decimal(rng.randrange(-40_000, 40_000)).scaleb(-6) if knows_point else None,
        store_number=str(rng.randrange(100, 12_000)) if rng.random() < 0.8 else None,
    )


_MARKETPLACES = frozenset({"Amazon", "eBay", "Etsy", "DoorDash", "Uber Eats", "Airbnb"})

_INTERMEDIARIES = {
    "SQ *": party("Square", "payment_terminal", website="squareup.com"),
    "TST* ": party("Toast", "payment_terminal", website="toasttab.com"),
    "PAYPAL *": party("PayPal", "payment_app", website="paypal.com"),
}
