from hypothesis import settings

# On a busy machine the time of one example says nothing.
settings.register_profile("registry_routes", deadline=None)
settings.load_profile("registry_routes")
