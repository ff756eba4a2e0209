"""Money: Stripe's customers, checkouts and events in; subscriptions, payments and grants of credits out. Trials and testers too."""
