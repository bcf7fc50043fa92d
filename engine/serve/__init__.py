"""An OpenAI-compatible server over a live engine. It needs the extra `serve`: FastAPI, uvicorn, prometheus-client."""
