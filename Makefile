# What can be done in a clone. Needs Go 1.26; dev, test and bench also PostgreSQL's server binaries, or see the README.

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build ./fastpubsub
	CGO_ENABLED=0 go build -o fastpubsub ./cmd/fastpubsub

.PHONY: test
test: ## Run the tests
	go test ./...
	cd otel && go test ./...

.PHONY: test-postgres-all
test-postgres-all: ## Run the short tests on PostgreSQL 14, 15, 16, 17 and 18, which are downloaded once
	FASTPUBSUB_TEST_VERSIONS='14 15 16 17 18' .ci/run versions

.PHONY: lint
lint: ## Run gofmt, go vet and staticcheck
	.ci/run lint

.PHONY: model
model: ## Check the formal model; needs spin and a C compiler
	model/check

.PHONY: ci
ci: ## Run all that a change must pass
	.ci/run

.PHONY: dev
dev: build ## Run PostgreSQL and the server, with nothing set up
	./fastpubsub dev

.PHONY: start-postgresql
start-postgresql: ## Start PostgreSQL in Docker, as env.sample has it; dev needs none
	docker run --name fastpubsub-postgresql --detach --publish 127.0.0.1:5432:5432 \
		--env POSTGRES_USER=fastpubsub --env POSTGRES_PASSWORD=fastpubsub --env POSTGRES_DB=fastpubsub postgres:17

.PHONY: remove-postgresql
remove-postgresql: ## Stop that PostgreSQL, and remove it with its data
	docker rm --force --volumes fastpubsub-postgresql

.PHONY: create-migration
create-migration: ## Create the next file in migrations: make create-migration NAME=what_it_does
	@.ci/migration '$(NAME)'

.PHONY: run-db-migrate
run-db-migrate: build ## Create or upgrade the tables in FASTPUBSUB_DATABASE_URL
	./fastpubsub db-migrate

.PHONY: run-server
run-server: build ## Run the server on FASTPUBSUB_DATABASE_URL
	./fastpubsub server

.PHONY: docker-build
docker-build: ## Build the Docker image fastpubsub
	docker build --tag fastpubsub .

.PHONY: bench
bench: build ## Measure publishing and consuming beside plain inserts
	./fastpubsub bench

.PHONY: soak
soak: ## Let everything happen at once, kills of PostgreSQL too: make soak DURATION=1h
	go run ./soak --duration $(or $(DURATION),3m)
