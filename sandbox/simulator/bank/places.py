"""List cities and streets from which stores are drawn."""

from decimal import Decimal
from typing import NamedTuple


class City(NamedTuple):
    """A city with a post code and a point in its middle."""

    name: str
    region: str | None
    postal_code: str
    country: str
    lat: Decimal
    lon: Decimal


_CITIES = """
San Francisco|CA|94107|US|37.7749|-122.4194
Oakland|CA|94612|US|37.8044|-122.2712
San Jose|CA|95113|US|37.3382|-121.8863
Los Angeles|CA|90017|US|34.0522|-118.2437
San Diego|CA|92101|US|32.7157|-117.1611
Sacramento|CA|95814|US|38.5816|-121.4944
Portland|OR|97204|US|45.5152|-122.6784
Seattle|WA|98101|US|47.6062|-122.3321
Las Vegas|NV|89101|US|36.1699|-115.1398
Phoenix|AZ|85004|US|33.4484|-112.0740
Salt Lake City|UT|84111|US|40.7608|-111.8910
Denver|CO|80202|US|39.7392|-104.9903
Albuquerque|NM|87102|US|35.0844|-106.6504
Austin|TX|78701|US|30.2672|-97.7431
Dallas|TX|75201|US|32.7767|-96.7970
Houston|TX|77002|US|29.7604|-95.3698
New Orleans|LA|70112|US|29.9511|-90.0715
Minneapolis|MN|55401|US|44.9778|-93.2650
Chicago|IL|60604|US|41.8781|-87.6298
Detroit|MI|48226|US|42.3314|-83.0458
Columbus|OH|43215|US|39.9612|-82.9988
Nashville|TN|37203|US|36.1627|-86.7816
Atlanta|GA|30303|US|33.7490|-84.3880
Miami|FL|33131|US|25.7617|-80.1918
Charlotte|NC|28202|US|35.2271|-80.8431
Washington|DC|20005|US|38.9072|-77.0369
Philadelphia|PA|19103|US|39.9526|-75.1652
New York|NY|10013|US|40.7128|-74.0060
Brooklyn|NY|11201|US|40.6782|-73.9442
Boston|MA|02108|US|42.3601|-71.0589
Honolulu|HI|96813|US|21.3069|-157.8583
Toronto|ON|M5V 2T6|CA|43.6532|-79.3832
Montréal|QC|H2Y 1C6|CA|45.5019|-73.5674
London||EC2M 7PP|GB|51.5072|-0.1276
Manchester||M2 5DB|GB|53.4808|-2.2426
Dublin||D02 VK60|IE|53.3498|-6.2603
Paris||75001|FR|48.8566|2.3522
Berlin|BE|10117|DE|52.5200|13.4050
München|BY|80331|DE|48.1351|11.5820
東京|13|100-0005|JP|35.6762|139.6503
الكويت||13001|KW|29.3759|47.9774
""".strip()

CITIES = tuple(
    City(name, region or None, postal_code, country, Decimal(lat), Decimal(lon))
    for name, region, postal_code, country, lat, lon in (line.split("|") for line in _CITIES.splitlines())
)

STREETS = (
    "Market St",
    "Main St",
    "2nd Ave",
    "Mission St",
    "Broadway",
    "Congress Ave",
    "Peachtree St NE",
    "Michigan Ave",
    "Elm St",
    "Washington Blvd",
    "Lake Shore Dr",
    "Sunset Blvd",
    "Church St",
    "Kingsway",
    "Rue de Rivoli",
    "Friedrichstraße",
    "State Route 35",
    "University Ave # B",
    'O"Farrell St',
)
