"""Speed beside bare aiohttp, in alternating blocks of one run."""
