package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"time"
)

// healthcheck is for images that have no shell and no curl.
type healthcheck struct {
	APIHost string `name:"api-host" env:"FASTPUBSUB_API_HOST" default:"0.0.0.0" help:"The address that the server listens on."`
	APIPort string `name:"api-port" env:"FASTPUBSUB_API_PORT" default:"8000" help:"Its port."`
	Live    bool   `help:"Ask whether it is alive, which it is without its database too."`
}

// Help implements kong.HelpProvider.
func (healthcheck) Help() string {
	return "The exit code is 0 if the server answers within 3 seconds that it is ready, else 1."
}

const healthcheckTimeout = 3 * time.Second

// Run implements the subcommand.
func (c *healthcheck) Run(p *process) error {
	var bad badSettings
	port := bad.integer("FASTPUBSUB_API_PORT", c.APIPort, 1, math.MaxUint16)
	if err := bad.err(); err != nil {
		return err
	}
	host := c.APIHost
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	path := "/readiness"
	if c.Live {
		path = "/liveness"
	}
	ctx, cancel := context.WithTimeout(p.ctx, healthcheckTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, strconv.Itoa(port))+path, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{} // without a proxy
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1024)) // what came of it is better than nothing
		return fmt.Errorf("%d %s", answer.StatusCode, text)
	}
	return nil
}
