package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v2"

	"github.com/fastpubsub/fastpubsub/httpapi"
)

// A container is one in a manifest, as far as it can be wrong about this program.
type container struct {
	Image   string
	Args    []string
	Command []string
	Env     []struct{ Name, Value string }
	EnvFrom []struct {
		SecretRef struct{ Name string } `yaml:"secretRef"`
	} `yaml:"envFrom"`
	LivenessProbe   probe `yaml:"livenessProbe"`
	ReadinessProbe  probe `yaml:"readinessProbe"`
	SecurityContext struct {
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
	} `yaml:"securityContext"`
}

type probe struct {
	HTTPGet struct{ Path string } `yaml:"httpGet"`
}

type podTemplate struct {
	Metadata struct{ Labels map[string]string }
	Spec     struct {
		Containers      []container
		SecurityContext struct {
			RunAsNonRoot bool `yaml:"runAsNonRoot"`
		} `yaml:"securityContext"`
	}
}

// A manifest is one object for Kubernetes.
type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Schedule string
		Selector any
		Template podTemplate
		Job      struct {
			Spec struct{ Template podTemplate }
		} `yaml:"jobTemplate"`
	}
	StringData map[string]string `yaml:"stringData"`
}

// manifests reads all of a folder of the repository.
func manifests(t *testing.T, pattern string) []manifest {
	t.Helper()
	files, err := filepath.Glob("../../" + pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	var all []manifest
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for decoder := yaml.NewDecoder(bytes.NewReader(text)); ; {
			var m manifest
			err := decoder.Decode(&m)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, m)
		}
	}
	return all
}

// accepts reports what is wrong with a command line.
func accepts(t *testing.T, args []string) error {
	t.Helper()
	parser, err := kong.New(&commands{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(args)
	return err
}

// The manifests name commands, settings and paths that there are, and let the container do no more than it has to.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	known := settings(t)
	var kinds []string
	secret := ""
	all := manifests(t, "deploy/kubernetes/*.yaml")
	for _, m := range all {
		if m.Kind == "Secret" {
			secret = m.Metadata.Name
			for name := range m.StringData {
				if _, ok := known[name]; !ok {
					t.Errorf("%s is no setting", name)
				}
			}
		}
	}
	for _, m := range all {
		kinds = append(kinds, m.Kind)
		pod := m.Spec.Template
		if m.Kind == "CronJob" {
			pod = m.Spec.Job.Spec.Template
			if len(strings.Fields(m.Spec.Schedule)) != 5 {
				t.Errorf("%s: schedule %q", m.Metadata.Name, m.Spec.Schedule)
			}
		}
		if m.Kind == "Secret" || m.Kind == "Service" {
			continue
		}
		if len(pod.Spec.Containers) != 1 || !pod.Spec.SecurityContext.RunAsNonRoot {
			t.Fatalf("%s: %d containers, runAsNonRoot %t", m.Metadata.Name, len(pod.Spec.Containers), pod.Spec.SecurityContext.RunAsNonRoot)
		}
		c := pod.Spec.Containers[0]
		if err := accepts(t, c.Args); err != nil || len(c.Command) > 0 {
			t.Errorf("%s: %v, command %q", m.Metadata.Name, err, c.Command)
		}
		for _, env := range c.Env {
			if _, ok := known[env.Name]; !ok {
				t.Errorf("%s: %s is no setting", m.Metadata.Name, env.Name)
			}
		}
		if len(c.EnvFrom) != 1 || c.EnvFrom[0].SecretRef.Name != secret {
			t.Errorf("%s: settings from %v, want %s", m.Metadata.Name, c.EnvFrom, secret)
		}
		security := c.SecurityContext
		if !security.ReadOnlyRootFilesystem || security.AllowPrivilegeEscalation == nil || *security.AllowPrivilegeEscalation {
			t.Errorf("%s may do more than it has to", m.Metadata.Name)
		}
		if m.Kind == "Deployment" {
			api := httpapi.New(nil, httpapi.Config{})
			answer := httptest.NewRecorder()
			api.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, c.LivenessProbe.HTTPGet.Path, nil))
			if answer.Code != http.StatusOK || c.ReadinessProbe.HTTPGet.Path != "/readiness" {
				t.Errorf("probes %+v, %+v", c.LivenessProbe, c.ReadinessProbe)
			}
		}
	}
	slices.Sort(kinds)
	if want := []string{"CronJob", "CronJob", "Deployment", "Job", "Secret", "Service"}; !slices.Equal(kinds, want) {
		t.Errorf("there are %v, want %v", kinds, want)
	}
}

// The compose file runs commands that there are, with settings that there are.
func TestCompose(t *testing.T) {
	t.Parallel()
	var compose struct {
		Services map[string]struct {
			Image       string
			Command     []string
			Environment map[string]string
		}
	}
	if err := yaml.Unmarshal([]byte(document(t, "compose.yaml")), &compose); err != nil {
		t.Fatal(err)
	}
	known := settings(t)
	for _, name := range []string{"migrate", "server"} {
		service, ok := compose.Services[name]
		if !ok || service.Image != "fastpubsub" {
			t.Fatalf("%s is %+v", name, service)
		}
		if err := accepts(t, service.Command); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for name, value := range service.Environment {
			if _, ok := known[name]; !ok {
				t.Errorf("%s is no setting", name)
			}
			var bad badSettings
			if strings.HasSuffix(name, "_URL") && parseURL(&bad, name, value) == nil {
				t.Error(bad)
			}
		}
	}
}

// What the image runs is a command, as an account that is not root, with the Go that go.mod wants.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	text := document(t, "Dockerfile")
	for instruction, args := range map[string]string{
		`(?m)^CMD \["(.*)"\]$`:                              "server",
		`(?m)^HEALTHCHECK .* CMD \["/fastpubsub", "(.*)"\]`: "healthcheck",
	} {
		m := regexp.MustCompile(instruction).FindStringSubmatch(text)
		if m == nil || m[1] != args || accepts(t, []string{m[1]}) != nil {
			t.Errorf("%s is %q", instruction, m)
		}
	}
	if !regexp.MustCompile(`(?m)^USER [1-9]\d*:[1-9]\d*$`).MatchString(text) || !strings.Contains(text, "\nENTRYPOINT [\"/fastpubsub\"]\n") {
		t.Error("it has another user or entrypoint")
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(document(t, "go.mod"))
	if !strings.Contains(text, "golang:"+version[1]+"-") {
		t.Errorf("it does not build with Go %s", version[1])
	}
}

// Workflows may only read the repository unless a job says otherwise, and use actions of a version.
func TestWorkflows(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"test.yaml", "image.yaml"} {
		var workflow struct {
			Permissions map[string]string
			Jobs        map[string]struct {
				Permissions map[string]string
				Steps       []struct{ Uses, Run string }
			}
		}
		if err := yaml.Unmarshal([]byte(document(t, ".github/workflows/"+name)), &workflow); err != nil {
			t.Fatal(err)
		}
		if len(workflow.Permissions) != 1 || workflow.Permissions["contents"] != "read" || len(workflow.Jobs) == 0 {
			t.Errorf("%s: permissions %v, %d jobs", name, workflow.Permissions, len(workflow.Jobs))
		}
		for job, j := range workflow.Jobs {
			for _, step := range j.Steps {
				if step.Uses != "" && !regexp.MustCompile(`^[\w-]+/[\w-]+@v\d+\.\d+\.\d+$`).MatchString(step.Uses) {
					t.Errorf("%s: %s uses %s", name, job, step.Uses)
				}
				if script, ok := strings.CutPrefix(step.Run, ".ci/"); ok {
					if _, err := os.Stat("../../.ci/" + script); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
}
