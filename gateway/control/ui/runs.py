"""placeholder until below."""

from fastapi import APIRouter


def router(services, records, frame):
    return APIRouter()
