package httpapi_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
)

const monitoringDir = "../examples/monitoring"

// monitoringQueries are the queries of the alerts and of the dashboard, by where they are.
func monitoringQueries(t *testing.T) map[string]string {
	t.Helper()
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(monitoringDir, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	queries := map[string]string{}

	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(read("alerts.yml"), &rules); err != nil {
		t.Fatal(err)
	}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			queries["alert "+rule.Alert] = rule.Expr
		}
	}

	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr string }
		}
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
	}
	if err := json.Unmarshal(read("grafana-dashboard.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "5m", `"$subscription"`, `".*"`)
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries["panel "+panel.Title+" "+target.RefID] = variables.Replace(target.Expr)
		}
	}
	for _, variable := range dashboard.Templating.List {
		if query, ok := variable.Query.(map[string]any); ok {
			text, _ := query["query"].(string)
			series, isLabel := strings.CutPrefix(text, "label_values(")
			series, _, hasLabel := strings.Cut(series, ",")
			if !isLabel || !hasLabel {
				t.Errorf("variable %s asks %q, want label_values", variable.Name, text)
			}
			queries["variable "+variable.Name] = series
		}
	}
	return queries
}

// The names in the README are those of a scrape.
func TestMetricsInREADME(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Monitoring\n")
	section, _, _ = strings.Cut(section, "\n## ")
	names := regexp.MustCompile("`((?:fastpubsub|http)_[a-z_]+)`").FindAllStringSubmatch(section, -1)
	if !ok || len(names) < 15 {
		t.Fatalf("the section on monitoring names only %v", names)
	}
	c, registry := serveMessages(t)
	c.do("GET", "/topics", "", 200, nil)
	scraped := labelsOf(t, registry)
	for _, name := range names {
		if name := name[1]; scraped[name] == nil && scraped[name+"_count"] == nil {
			t.Errorf("the README has %s, which no scrape has", name)
		}
	}
}

// namesIn returns the names of metrics in a query, and labels that it compares or groups by.
func namesIn(expr metricsql.Expr) (names, labels []string) {
	metricsql.VisitAll(expr, func(expr metricsql.Expr) {
		switch e := expr.(type) {
		case *metricsql.MetricExpr:
			for _, filters := range e.LabelFilterss {
				for _, filter := range filters {
					if filter.Label == "__name__" {
						names = append(names, filter.Value)
					} else {
						labels = append(labels, filter.Label)
					}
				}
			}
		case *metricsql.AggrFuncExpr:
			labels = append(labels, e.Modifier.Args...)
		}
	})
	return names, labels
}

// Alerts and dashboard ask for metrics and labels that a scrape has. The parser is that of a dialect of PromQL, which is a
// superset: Prometheus's own brings some hundred modules.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	_, registry := serveMessages(t)
	scraped := labelsOf(t, registry)
	scraped["up"] = []string{"job", "instance"} // Prometheus's own
	for place, query := range monitoringQueries(t) {
		expr, err := metricsql.Parse(query)
		if err != nil {
			t.Errorf("%s: %v: %s", place, err, query)
			continue
		}
		names, labels := namesIn(expr)
		if len(names) == 0 {
			t.Errorf("%s asks for no metric: %s", place, query)
		}
		var there []string
		for _, name := range names {
			if scraped[name] == nil {
				t.Errorf("%s asks for %s, which no scrape has", place, name)
			}
			there = append(there, scraped[name]...)
		}
		for _, label := range labels {
			if label != "instance" && !slices.Contains(there, label) {
				t.Errorf("%s asks for the label %s, which none of %v has", place, label, names)
			}
		}
	}
}

// serveMessages is a server through which messages went in every way that is counted.
func serveMessages(t *testing.T) (client, *prometheus.Registry) {
	t.Helper()
	c, _, registry := serveMetered(t)
	c.do("POST", "/topics", `{"id":"t"}`, 201, nil)
	c.do("POST", "/subscriptions", `{"id":"s","topic_id":"t","max_delivery_attempts":1}`, 201, nil)
	c.do("POST", "/topics/t/messages", `[{},{}]`, 204, nil)
	msgs := c.consume("s")
	if len(msgs) != 2 {
		t.Fatalf("%d messages, want 2", len(msgs))
	}
	c.do("POST", "/subscriptions/s/acks", `["`+msgs[0].ID+`"]`, 204, nil)
	c.do("POST", "/subscriptions/s/nacks", `["`+msgs[1].ID+`"]`, 204, nil)
	c.do("POST", "/subscriptions/s/dlq/reprocess", `["`+msgs[1].ID+`"]`, 204, nil)
	return c, registry
}

// labelsOf are the labels of all series by their names, as a scrape has them; not nil where there are none.
func labelsOf(t *testing.T, registry *prometheus.Registry) map[string][]string {
	t.Helper()
	text, err := scrape(registry)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	line := regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? `)
	label := regexp.MustCompile(`([a-z_]+)="`)
	for _, match := range line.FindAllStringSubmatch(text, -1) {
		labels := all[match[1]]
		if labels == nil {
			labels = []string{}
		}
		for _, name := range label.FindAllStringSubmatch(match[2], -1) {
			labels = append(labels, name[1])
		}
		all[match[1]] = labels
	}
	return all
}

func TestScrapeConfig(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(monitoringDir, "prometheus.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName     string `yaml:"job_name"`
			MetricsPath string `yaml:"metrics_path"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	for _, name := range config.RuleFiles {
		if _, err := os.Stat(filepath.Join(monitoringDir, name)); err != nil {
			t.Error(err)
		}
	}
	if len(config.ScrapeConfigs) != 1 || config.ScrapeConfigs[0].JobName != "fastpubsub" || config.ScrapeConfigs[0].MetricsPath != "/metrics" {
		t.Errorf("scrapes %+v, want the job that the alerts are about", config.ScrapeConfigs)
	}
}
