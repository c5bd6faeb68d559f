// The same routes on gorilla/mux, timed on the requests that standard input lists, one a line as
// "kind method path"; prints "kind nanoseconds" for each kind, and "build nanoseconds".
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/gorilla/mux"
)

const (
	component = `[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*`
	name      = component + `(?:/` + component + `)*`
	tag       = `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
	digest    = `[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+`
	rounds    = 40
)

func main() {
	router := mux.NewRouter().StrictSlash(true)
	for _, route := range [][2]string{
		{"base", "/v2/"},
		{"tags", "/v2/{name:" + name + "}/tags/list"},
		{"manifest", "/v2/{name:" + name + "}/manifests/{reference:" + tag + "|" + digest + "}"},
		{"blob", "/v2/{name:" + name + "}/blobs/{digest:" + digest + "}"},
		{"blob-upload", "/v2/{name:" + name + "}/blobs/uploads/"},
		{"blob-upload-chunk", "/v2/{name:" + name + "}/blobs/uploads/{uuid:[a-zA-Z0-9-_.=]+}"},
		{"referrers", "/v2/{name:" + name + "}/referrers/{digest:" + digest + "}"},
	} {
		router.Path(route[1]).Name(route[0]).HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	}
	requests := map[string][]*http.Request{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		kind, rest, _ := strings.Cut(lines.Text(), "\t")
		method, path, _ := strings.Cut(rest, "\t")
		request, err := http.NewRequest(method, "http://registry.example.com"+path, nil)
		if err != nil {
			panic(err)
		}
		var match mux.RouteMatch
		if found := router.Match(request, &match); found == (kind == "miss") {
			panic(fmt.Sprintf("%s %s: %v", method, path, found))
		}
		requests[kind] = append(requests[kind], request)
	}
	best := map[string]float64{}
	least := func(kind string, start time.Time, count int) {
		took := float64(time.Since(start).Nanoseconds()) / float64(count)
		if before, known := best[kind]; !known || took < before {
			best[kind] = took
		}
	}
	for round := 0; round < rounds; round++ {
		for kind, all := range requests {
			start := time.Now()
			for _, request := range all {
				var match mux.RouteMatch
				router.Match(request, &match)
			}
			least(kind, start, len(all))
		}
		start := time.Now()
		for i := 0; i < 200; i++ {
			router.Get("manifest").URL("name", "library/nginx", "reference", "latest")
		}
		least("build", start, 200)
	}
	for kind, took := range best {
		fmt.Printf("%s\t%.0f\n", kind, took)
	}
}
