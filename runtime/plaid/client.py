"""Plaid client: plaid-python builds and authenticates requests; answers are decoded by runtime.plaid.models.

plaid-python's own models decode 237 transactions a second and turn money into floats (PLAID.md 1.12). Its calls block,
so they run in threads, as many as there are connections.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import plaid
import urllib3
from msgspec import Raw, Struct
from plaid import models, rest
from plaid.api.plaid_api import PlaidApi

from runtime.plaid import item_models, repair
from runtime.plaid import models as plaid_answers
from runtime.plaid.decoding import decode
from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import AccountsAnswer, SyncPage
from runtime.settings import Settings
from schemas.errors import Halt, Quarantine, Retry, TartanError

PAGE_TRANSACTIONS_MAX = 500
"""Plaid's maximum: fewer pages have fewer chances of a mutation between them (PLAID.md 1.1)."""
CONNECT_TIMEOUT_S = 10.0
THREADS_SPARE = 4
"""Threads beyond the fetches, so that a key or a link does not wait for a history."""
BALANCES_TIMEOUT_S_MIN = 60.0
"""Plaid asks the bank, which can take more than 30 s (PLAID.md 1.4); a call without an answer is billed too."""
OLDEST_BALANCE = "min_last_updated_datetime"
"""Field of /accounts/balance/get with the greatest age, which banks without present balances need."""
CATEGORY_VERSION = "v2"
PLAID_VERSION = "2020-09-14"
_CODE = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
"""Pattern of Plaid's codes. They are stored as they come; other text of a gateway between, as a NUL that Postgres
refuses, would end each process that stores it."""
COUNTRIES = ("US", "CA", "GB")

Answer = TypeVar("Answer")


class PlaidRefused(TartanError):
    """An error answer of Plaid, without its message or a token.

    `field`: OLDEST_BALANCE, where the message names it; nothing else.
    """

    def __init__(
        self,
        *,
        error_type: str,
        error_code: str,
        status: int,
        request_id: str | None,
        reason: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(f"Plaid refused: {error_type} {error_code}, status {status}, request {request_id}")
        self.error_type = error_type
        self.error_code = error_code
        self.status = status
        self.request_id = request_id
        self.reason = reason
        self.field = field


class Exchanged(Struct, frozen=True):
    """The access token and the id of a new Item."""

    access_token: str
    item_id: str


class LinkToken(Struct, frozen=True):
    """A token that opens Link in a browser, and its expiration as Plaid wrote it."""

    link_token: str
    expiration: str


class Institution(Struct, frozen=True):
    """A bank of Plaid's."""

    institution_id: str
    name: str


class _Refusal(Struct):
    error_type: str
    error_code: str
    request_id: str | None = None
    error_code_reason: str | None = None
    error_message: str | None = None


class _Key(Struct):
    key: Raw


class _PublicToken(Struct):
    public_token: str


class _InstitutionAnswer(Struct):
    institution: Institution


class _Done(Struct):
    request_id: str | None = None


class Plaid:
    """Plaid's API. Each method raises PlaidRefused, Retry (no answer of Plaid) or Quarantine (an unreadable one)."""

    def __init__(self, settings: Settings, *, threads: int | None = None) -> None:
        if not settings.plaid_client_id or not settings.plaid_secret.get_secret_value():
            raise Halt("no Plaid keys: set TARTAN_PLAID_CLIENT_ID and TARTAN_PLAID_SECRET")
        self._settings = settings
        size = threads or settings.fetch_concurrency + THREADS_SPARE
        self._timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=settings.plaid_timeout_s)
        self._threads = ThreadPoolExecutor(max_workers=size, thread_name_prefix="plaid")
        configuration = plaid.Configuration(
            host=settings.plaid_address(),
            api_key={
                "clientId": settings.plaid_client_id,
                "secret": settings.plaid_secret.get_secret_value(),
                "plaidVersion": PLAID_VERSION,
            },
        )
        configuration.retries = False  # the caller decides, because it has the whole update
        configuration.connection_pool_maxsize = size
        client = plaid.ApiClient(configuration)
        client.rest_client = _RawTransport(configuration, timeout=self._timeout)
        self._transport = client.rest_client
        self._api = PlaidApi(client)

    async def close(self) -> None:
        """Close idle connections and release the threads; a call under way ends by its timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._transport.pool_manager.clear()

    async def sync_page(self, token: str, cursor: str | None, *, count: int = PAGE_TRANSACTIONS_MAX) -> SyncPage:
        """Get one page of changes after a cursor; None gets the whole history."""
        options: dict[str, Any] = {
            "include_original_description": True,
            "personal_finance_category_version": models.PersonalFinanceCategoryVersion(CATEGORY_VERSION),
        }
        if not cursor:
            options["days_requested"] = self._settings.days_requested
        request = models.TransactionsSyncRequest(
            access_token=token,
            count=count,
            options=models.TransactionsSyncRequestOptions(**options),
            **({"cursor": cursor} if cursor else {}),
        )
        return await self._call(self._api.transactions_sync, request, plaid_answers.sync_page)

    async def accounts(self, token: str) -> AccountsAnswer:
        """Get the accounts with their cached balances; free."""
        return await self._call(
            self._api.accounts_get, models.AccountsGetRequest(access_token=token), plaid_answers.accounts
        )

    async def balances(
        self, token: str, *, account_ids: Sequence[str] = (), oldest: datetime | None = None
    ) -> AccountsAnswer:
        """Get the present balances from the bank; paid, 5 a minute and Item.

        `oldest`: the greatest age of a balance, which banks without present balances need and others ignore.
        """
        options: dict[str, Any] = {}
        if account_ids:
            options["account_ids"] = list(account_ids)
        if oldest is not None:
            options[OLDEST_BALANCE] = oldest.replace(microsecond=0)
        request = models.AccountsBalanceGetRequest(
            access_token=token, **({"options": models.AccountsBalanceGetRequestOptions(**options)} if options else {})
        )
        timeout_s = max(self._settings.plaid_timeout_s, BALANCES_TIMEOUT_S_MIN)
        return await self._call(self._api.accounts_balance_get, request, plaid_answers.accounts, timeout_s=timeout_s)

    async def item(self, token: str) -> ItemAnswer:
        """Get the Item's state and the time of Plaid's last contact with its bank."""
        return await self._call(self._api.item_get, models.ItemGetRequest(access_token=token), item_models.item)

    async def remove(self, token: str) -> None:
        """Remove the Item at Plaid: its token becomes void, and billing stops."""
        await self._call(self._api.item_remove, models.ItemRemoveRequest(access_token=token), _reads(_Done))

    async def exchange(self, public_token: str) -> Exchanged:
        """Exchange Link's public token for the Item's access token."""
        request = models.ItemPublicTokenExchangeRequest(public_token=public_token)
        return await self._call(self._api.item_public_token_exchange, request, _reads(Exchanged))

    async def verification_key(self, key_id: str) -> bytes:
        """Get a key that signs webhooks, as JSON of its JWK."""
        request = models.WebhookVerificationKeyGetRequest(key_id=key_id)
        answer = await self._call(self._api.webhook_verification_key_get, request, _reads(_Key))
        return bytes(answer.key)

    async def link_token(
        self,
        user_id: str,
        *,
        client_name: str = "Tartan",
        countries: Sequence[str] = COUNTRIES,
        language: str = "en",
        access_token: str | None = None,
        account_selection: bool = False,
        redirect_uri: str | None = None,
    ) -> LinkToken:
        """Create a token that opens Link; with an access token in update mode, to repair that Item's login."""
        fields: dict[str, Any] = {"redirect_uri": redirect_uri} if redirect_uri else {}
        if access_token is None:
            fields["products"] = [models.Products("transactions")]
            fields["transactions"] = models.LinkTokenTransactions(days_requested=self._settings.days_requested)
            if self._settings.webhook_url:
                fields["webhook"] = self._settings.webhook_url
        else:
            fields["access_token"] = access_token
            if account_selection:
                fields["update"] = models.LinkTokenCreateRequestUpdate(account_selection_enabled=True)
        request = models.LinkTokenCreateRequest(
            client_name=client_name,
            language=language,
            country_codes=[models.CountryCode(code) for code in countries],
            user=models.LinkTokenCreateRequestUser(client_user_id=user_id),
            **fields,
        )
        return await self._call(self._api.link_token_create, request, _reads(LinkToken))

    async def sandbox_public_token(
        self,
        institution_id: str,
        *,
        webhook: str | None = None,
        username: str | None = None,
        password: str | None = None,
    ) -> str:
        """Create an Item in Plaid's sandbox, as a user does through Link."""
        fields = {
            "webhook": webhook or self._settings.webhook_url or None,
            "override_username": username,
            "override_password": password,
        }
        options = {name: value for name, value in fields.items() if value is not None}
        request = models.SandboxPublicTokenCreateRequest(
            institution_id=institution_id,
            initial_products=[models.Products("transactions")],
            options=models.SandboxPublicTokenCreateRequestOptions(**options),
        )
        answer = await self._call(self._api.sandbox_public_token_create, request, _reads(_PublicToken))
        return answer.public_token

    async def update_webhook(self, token: str, url: str) -> None:
        """Change the address of the Item's webhooks; Plaid sends WEBHOOK_UPDATE_ACKNOWLEDGED to it."""
        request = models.ItemWebhookUpdateRequest(access_token=token, webhook=url)
        await self._call(self._api.item_webhook_update, request, _reads(_Done))

    async def refresh(self, token: str) -> None:
        """Have Plaid ask the bank now; paid, 2 a minute and Item. Changes are announced by webhook."""
        request = models.TransactionsRefreshRequest(access_token=token)
        await self._call(self._api.transactions_refresh, request, _reads(_Done))

    async def institution(self, institution_id: str, *, countries: Sequence[str] = COUNTRIES) -> Institution:
        """Get a bank's name."""
        request = models.InstitutionsGetByIdRequest(
            institution_id=institution_id, country_codes=[models.CountryCode(code) for code in countries]
        )
        answer = await self._call(self._api.institutions_get_by_id, request, _reads(_InstitutionAnswer))
        return answer.institution

    async def _call(
        self,
        endpoint: Callable[..., Any],
        request: Any,
        read: Callable[[bytes], Answer],
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        ask = partial(endpoint, request, _preload_content=False, _check_return_type=False, _request_timeout=timeout_s)
        return await loop.run_in_executor(self._threads, partial(self._blocking, ask, read))

    def _blocking(self, ask: Callable[[], Any], read: Callable[[bytes], Answer]) -> Answer:
        """Call in a thread; the answer is decoded there too, so that a large page does not block the event loop."""
        try:
            response = ask()
            body: bytes = response.data
        except urllib3.exceptions.HTTPError as error:
            # `from None`: urllib3's errors contain the request, and with it the token.
            raise Retry(f"no answer from Plaid: {type(error).__name__}") from None
        if 200 <= response.status <= 299:
            return read(body)
        raise _refused(response.status, body)


class _RawTransport(rest.RESTClientObject):  # type: ignore[misc]
    """plaid-python's transport, with every answer returned raw.

    The original turns other answers than 2xx into an exception with the body as text, and fails where that is no UTF-8.
    """

    def __init__(self, configuration: Any, *, timeout: urllib3.Timeout) -> None:
        super().__init__(configuration)
        self._timeout = timeout

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        body: Any = None,
        _request_timeout: float | None = None,
        **_: Any,
    ) -> Any:
        """Send one request, without retries or redirects."""
        own = None if _request_timeout is None else urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=_request_timeout)
        return self.pool_manager.request(
            method,
            url,
            headers=headers,
            json=body if body is not None else {},
            timeout=own or self._timeout,
            retries=False,
            redirect=False,
            preload_content=True,
        )


def _refused(status: int, body: bytes) -> TartanError:
    try:
        refusal = decode(_Refusal, repair.text(body))
    except (Retry, Quarantine):
        return Retry(f"status {status} and no error of Plaid's")
    if not (_CODE.fullmatch(refusal.error_type) and _CODE.fullmatch(refusal.error_code)):
        return Retry(f"status {status} and an error that is none of Plaid's")
    return PlaidRefused(
        error_type=refusal.error_type,
        error_code=refusal.error_code,
        status=status,
        request_id=refusal.request_id if _CODE.fullmatch(refusal.request_id or "") else None,
        reason=refusal.error_code_reason,
        field=OLDEST_BALANCE if OLDEST_BALANCE in (refusal.error_message or "") else None,
    )


def _reads(shape: type[Answer]) -> Callable[[bytes], Answer]:
    return partial(decode, shape)
