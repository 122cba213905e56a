package fastpubsub_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"path/filepath"
	"testing"
)

// TestEveryMethodHasAnExample finds, as go doc does, an example for New and for each method of Broker, with an output: without
// one it would be compiled and never run.
func TestEveryMethodHasAnExample(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	pkg, err := doc.NewFromFiles(fset, files, "github.com/fastpubsub/fastpubsub")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, typ := range pkg.Types {
		if typ.Name != "Broker" {
			continue
		}
		for _, f := range append(typ.Funcs, typ.Methods...) {
			checked++
			if len(f.Examples) == 0 {
				t.Errorf("there is no example for %s", f.Name)
			}
			for _, example := range f.Examples {
				if example.Output == "" && !example.EmptyOutput {
					t.Errorf("the example %s has no output that is checked", example.Name)
				}
			}
		}
	}
	if checked < 30 {
		t.Errorf("only %d methods were found", checked)
	}
}
